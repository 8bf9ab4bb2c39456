import pickle
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from passel.config import Config, GatewayConfig, UpstreamConfig


def test_without_a_file_there_is_docker_hub() -> None:
    config = Config()
    assert list(config.upstreams) == ["docker.io"]
    assert config.default_upstream == "docker.io"
    assert config.upstreams["docker.io"].api == "https://registry-1.docker.io"
    assert "index.docker.io" in config.upstreams["docker.io"].aliases
    assert config.gateway.listen == ("127.0.0.1:65001", "127.0.0.1:4001")
    assert config.gateway.health == ("127.0.0.1:40901", "127.0.0.1:4003")
    assert config.gateway.limits.peer_wait == timedelta(milliseconds=3500)
    assert config.store.capacity == 40 * 2**30


def test_an_upstreams_api_follows_from_its_name() -> None:
    config = Config(upstreams={"ghcr.io": {}, "registry.corp:5000": None})
    assert config.upstreams["ghcr.io"].api == "https://ghcr.io"
    assert config.upstreams["registry.corp:5000"].api == "https://registry.corp:5000"
    assert config.default_upstream is None


def names(upstreams: dict[str, Any]) -> Config:
    return Config(upstreams=upstreams)


def test_names_of_upstreams() -> None:
    config = names(
        {
            "docker.io": {},
            "registry.corp:5000": {"aliases": ["corp"]},
            "ghcr.io": {},
            "lab": {"api": "http://127.0.0.1:5055"},
            "plain.corp:80": {"api": "http://plain.corp:80"},
        }
    )
    for name, key in {
        "docker.io": "docker.io",
        "Docker.IO.": "docker.io",
        "docker.io:443": "docker.io",
        "docker.io:80": None,
        "registry.hub.docker.com": "docker.io",
        "registry-1.docker.io:443": "docker.io",
        "registry.corp:5000": "registry.corp:5000",
        "registry.corp": None,
        "corp": "registry.corp:5000",
        "corp:443": "registry.corp:5000",
        "lab": "lab",
        "lab:80": "lab",
        "127.0.0.1:5055": "lab",
        "127.0.0.1": None,
        "plain.corp": "plain.corp:80",
        "https://ghcr.io": None,
        "ghcr.io/x": None,
        "": None,
    }.items():
        assert config.upstream_for(name) == key, name


def test_what_is_written_goes_before_what_follows() -> None:
    config = names(
        {
            "docker.io": {},
            "registry-1.docker.io": {"api": "https://mirror.corp"},
            "a": {"api": "https://shared.corp"},
            "b": {"api": "https://shared.corp"},
            "c": {"api": "https://library"},
            "d": {"aliases": ["mirror.corp"]},
        }
    )
    assert config.upstream_for("registry-1.docker.io") == "registry-1.docker.io"
    assert config.upstream_for("index.docker.io") == "docker.io"
    assert config.upstream_for("mirror.corp") == "d"
    assert config.upstream_for("shared.corp") is None
    assert config.upstream_for("library") is None


@pytest.mark.parametrize(
    ("data", "way"),
    [
        ({"upstreams": {}}, ("upstreams",)),
        ({"upstreams": {"a": {"aliases": ["b"]}, "b": {}}}, ("upstreams", "a", "aliases", 0)),
        ({"upstreams": {"a": {"aliases": ["a"]}}}, ("upstreams", "a", "aliases", 0)),
        ({"upstreams": {"none": {}}}, ("upstreams", "none", "[key]")),
        ({"upstreams": {"A": {}}}, ("upstreams", "A", "[key]")),
        ({"upstreams": {"a/b": {}}}, ("upstreams", "a/b", "[key]")),
        ({"upstreams": {"a": {"api": "a"}}}, ("upstreams", "a", "api")),
        ({"upstreams": {"a": {"api": "https://a/v2"}}}, ("upstreams", "a", "api")),
        ({"upstreams": {"a": {"api": "https://a?x"}}}, ("upstreams", "a", "api")),
        ({"upstreams": {"a": {"api": "https://[::1"}}}, ("upstreams", "a", "api")),
        ({"upstreams": {"a": {"api": "http://a", "ca": "x"}}}, ("upstreams", "a", "ca")),
        ({"upstreams": {"a": {"username": "x"}}}, ("upstreams", "a", "username")),
        ({"upstreams": {"a": {"insecure": "yes"}}}, ("upstreams", "a", "insecure")),
        ({"upstreams": {"a": {"networks": [10]}}}, ("upstreams", "a", "networks", 0)),
        ({"upstreams": {"a": {"connections": 0}}}, ("upstreams", "a", "connections")),
        ({"default_upstream": "ghcr.io"}, ("default_upstream",)),
        ({"default_upstream": "index.docker.io"}, ("default_upstream",)),
        ({"gateway": {"dedicated": {"a:1": "b"}}}, ("gateway", "dedicated", "a:1")),
        ({"gateway": {"listen": ["a:1", "a:1"]}}, ("gateway", "listen", 1)),
        ({"gateway": {"health": ["0.0.0.0:4001"]}}, ("gateway", "health", 0)),
        (
            {"gateway": {"limits": {"header_timeout": "0 s"}}},
            ("gateway", "limits", "header_timeout"),
        ),
        ({"store": {"capacity": 40}}, ("store", "capacity")),
        ({"scheduler": {"epoch": timedelta(-1)}}, ("scheduler", "epoch")),
        ({"cluster": "a b"}, ("cluster",)),
        ({"cluster": "a\n"}, ("cluster",)),
    ],
)
def test_values_that_are_refused(data: dict[str, Any], way: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(data)
    assert [error["loc"] for error in caught.value.errors()] == [way]


def test_addresses_that_do_not_clash() -> None:
    gateway = GatewayConfig.model_validate(
        {
            "listen": ["127.0.0.1:0", "127.0.0.2:0", "127.0.0.1:1", "127.0.0.2:1"],
            "dedicated": {"127.0.0.1:0": "a"},
            "health": [],
        }
    )
    assert gateway.dedicated == {"127.0.0.1:0": "a"}


def test_static_credentials() -> None:
    upstream = UpstreamConfig.model_validate(
        {"api": "https://a", "auth": "static", "username": "u", "password_file": "/p"}
    )
    assert upstream.username == "u"
    with pytest.raises(ValidationError):
        UpstreamConfig(api="https://a", auth="static")


def test_a_config_is_a_value() -> None:
    config = Config()
    assert pickle.loads(pickle.dumps(config)) == config
    assert pickle.loads(pickle.dumps(config)).upstream_for("index.docker.io") == "docker.io"
    with pytest.raises(ValidationError):
        config.store.capacity = 5  # type: ignore[misc,assignment]


def test_every_field_says_what_it_means() -> None:
    def check(model: Any) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            if hasattr(field.annotation, "model_fields"):
                check(field.annotation)

    check(Config)
    check(UpstreamConfig)
