from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from passel.config import Config, UpstreamConfig, dump, load, missing_files, parse
from passel.errors import ConfigError

PROFILES = sorted(Path(__file__).resolve().parents[2].joinpath("configs").glob("*.yaml"))

DESIGN = """
upstreams:
  docker.io: {api: "https://registry-1.docker.io", aliases: [index.docker.io, registry-1.docker.io]}
  registry.corp:5000:
    api: "https://registry.corp:5000"
    ca: corp.crt
    networks: [10.0.0.0/8]
    auth: passthrough
    read_policy: grant
    grant_ttl: 5 min
    when_origin_down: granted
  lab: {api: "http://127.0.0.1:5055", networks: [127.0.0.0/8], tag_ttl: 30 s}
default_upstream: docker.io
gateway:
  listen: ["127.0.0.1:65001"]
  dedicated: {"127.0.0.1:65002": registry.corp:5000}
  health: ["127.0.0.1:40901"]
  limits: {header_timeout: 10 s, header_bytes: 64 KiB, connections: 4096}
store: {path: /var/lib/passel, capacity: 40 GiB}
"""


def sentences(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, source="f.yaml")
    return str(caught.value).split("\n")


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "passel.yaml"
    file.write_text(DESIGN)
    config = load(file)
    corp = config.upstreams["registry.corp:5000"]
    assert corp.ca == tmp_path / "corp.crt"
    assert str(corp.networks[0]) == "10.0.0.0/8"
    assert corp.grant_ttl == timedelta(minutes=5)
    assert config.gateway.limits.header_bytes == 65536
    assert config.gateway.dedicated == {"127.0.0.1:65002": "registry.corp:5000"}
    assert config.upstream_for("127.0.0.1:5055") == "lab"
    assert missing_files(config) == [
        f"upstreams.registry.corp:5000.ca: there is no file {tmp_path / 'corp.crt'}"
    ]


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.name)
def test_the_profiles_that_are_shipped(file: Path) -> None:
    config = load(file)
    assert parse(dump(config)) == config
    assert missing_files(config) == []


def test_the_default_profile_is_complete_and_says_the_defaults() -> None:
    file = next(file for file in PROFILES if file.name == "default.yaml")
    text = file.read_text()
    given_ = yaml.safe_load(text)
    config = load(file)
    for name, field in Config.model_fields.items():
        if name in ("upstreams", "cluster"):
            assert f"{name}:" in text
            continue
        assert getattr(config, name) == getattr(Config(), name)
        section = field.annotation
        fields = getattr(section, "model_fields", {})
        assert set(fields) == (set(given_[name]) if fields else set())
    assert set(given_["gateway"]["limits"]) == set(type(config.gateway.limits).model_fields)
    for name in UpstreamConfig.model_fields:
        assert f"#   {name}:" in text


@pytest.mark.parametrize(
    "text", ["", "\n", "# nothing\n", "null", "---\n", "gateway:\nstore:\n", "upstreams:"]
)
def test_nothing_means_the_defaults(text: str) -> None:
    assert parse(text) == Config()


def test_none_as_default_upstream() -> None:
    config = parse("default_upstream: none")
    assert config.default_upstream is None
    assert "default_upstream: none" in dump(config)
    assert parse(dump(config)) == config


def test_what_is_dumped_comes_back() -> None:
    config = parse(DESIGN, folder=Path("/etc/passel"))
    assert config.upstreams["registry.corp:5000"].ca == Path("/etc/passel/corp.crt")
    assert parse(dump(config), folder=Path("/elsewhere")) == config
    assert "capacity: 40 GiB" in dump(config)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "f.yaml:1: expected a mapping (key: value), got a list"),
        ("\nhello", "f.yaml:2: expected a mapping (key: value), got hello"),
        ("a: 1\n---\nb: 2", "another document"),
        ("store: {", "f.yaml:1: this is not YAML: "),
        ("store:\n\tpath: x", "f.yaml:2: this is not YAML: "),
        ("store: !python/object:os.system x", "could not determine a constructor"),
        ("store: \x01", "f.yaml:1: expected text, got a control character"),
        ("store: " + "[" * 5000, "nested too deeply"),
        ("store: &a [*a]", "nested too deeply"),
        ("a: &a [" + "x," * 300 + "]\nb: &b [" + "*a," * 300 + "]\n", "too many values"),
        ("stroe: {}", "f.yaml:1: stroe: unknown key, did you mean store?"),
        ("store:\n  zzz: 1", "f.yaml:2: store.zzz: unknown key, expected one of path, capacity"),
        ("gateway:\n  limits:\n    conections: 1", "f.yaml:3: gateway.limits.conections: unknown"),
        ("upstreams: {a: {tag-ttl: 1 s}}", "a.tag-ttl: unknown key, did you mean tag_ttl?"),
        (
            "store:\n  capacity: 40",
            "f.yaml:2: store.capacity: expected a number and one of B, KiB, MiB, GiB, TiB, got 40",
        ),
        ("store: {capacity: 0 B}", "store.capacity: expected more than 0 B, got 0 B"),
        ("scheduler: {epoch: 0 s}", "scheduler.epoch: expected more than 0 s, got 0 s"),
        ("scheduler: {epoch: 30}", "expected a number and one of ms, s, min, h, d, got 30"),
        ("scheduler: {shards: two}", "scheduler.shards: expected a whole number, got two"),
        ("scheduler: {shards: true}", "scheduler.shards: expected a whole number, got true"),
        ("scheduler: {shards: 1.0}", "scheduler.shards: expected a whole number, got 1.0"),
        ("scheduler: {shards: 0}", "scheduler.shards: expected at least 1, got 0"),
        ("scheduler: {shards: 5000000}", "scheduler.shards: expected at most 1000000, got 5000000"),
        ("scheduler: 5", "f.yaml:1: scheduler: expected a mapping (key: value), got 5"),
        ("gateway: {listen: 127.0.0.1:1}", "gateway.listen: expected a list, got 127.0.0.1:1"),
        ("gateway:\n  listen:\n  - a:1\n  - b", "f.yaml:4: gateway.listen[1]: expected host:port"),
        ("gateway: {dedicated: {x: docker.io}}", "gateway.dedicated.x: expected host:port"),
        (
            "gateway: {dedicated: {'127.0.0.1:65001': docker.io}}",
            "gateway.dedicated.127.0.0.1:65001: 127.0.0.1:65001 is taken by listen already",
        ),
        ("default_upstream: lab", "expected the key of an upstream (docker.io) or none, got lab"),
        ("default_upstream: index.docker.io", "which is another name of docker.io"),
        ("upstreams: {a: {auth: basic}}", "expected passthrough, anonymous or static, got basic"),
        ("upstreams: {a: {auth: static}}", "upstreams.a.username: is missing, auth: static needs"),
        ("upstreams: {a: {password_file: p}}", "is for auth: static, and auth is passthrough"),
        ("upstreams: {a: {insecure: 1}}", "upstreams.a.insecure: expected true or false, got 1"),
        ("upstreams: {a: {ca: 5}}", "upstreams.a.ca: expected a path, got 5"),
        ("upstreams: {a: {networks: [10.0.0.1/8]}}", "host bits, which would be 10.0.0.0/8"),
        ("upstreams: {a: {networks: [corp]}}", "networks[0]: expected a network such as"),
        ("upstreams: {Corp: {}}", "expected the name of an upstream in its plain form, corp"),
        ("upstreams: {'https://a': {}}", "an upstream as host[:port], got https://a"),
        ("upstreams: []", "f.yaml:1: upstreams: expected a mapping (key: value), got a list"),
        ("logging: {level: loud}", "expected debug, info, warning or error, got loud"),
        ("gateway: {limits: {header_bytes: 2 B}}", "expected at least 1 KiB, got 2 B"),
        ("cluster: a b", "cluster: expected a name of letters, digits"),
        ("seeds: {label: ''}", "seeds.label: expected text of 1 to 255 characters, got nothing"),
        ("store:\n  capacity: 1 GiB\n  capacity: 2 GiB", "f.yaml:3: store.capacity: this key is"),
        ("? [a]\n: 1", "expected text as a key, got a list"),
        ("store: {path: 2026-02-31}\nx: 1", "x: unknown key"),
    ],
)  # fmt: skip
def test_every_mistake_has_its_sentence(text: str, sentence: str) -> None:
    found = sentences(text)
    assert any(sentence in line for line in found), found
    assert all(line.startswith("f.yaml:") for line in found)


def test_all_mistakes_are_told_at_once() -> None:
    found = sentences(
        "upstreams:\n"
        "  lab: {api: 'ftp://x', aliases: [l]}\n"
        "  corp: {api: 'http://corp', insecure: true, aliases: [l]}\n"
        "default_upstream: elsewhere\n"
        "gateway:\n"
        "  listen: [5]\n"
        "store: {capacity: 4}\n"
        "stor: {}\n"
    )
    assert [line.split(": ")[0] + ": " + line.split(": ")[1] for line in found] == [
        "f.yaml:2: upstreams.lab.api",
        "f.yaml:3: upstreams.corp.aliases[0]",
        "f.yaml:3: upstreams.corp.insecure",
        "f.yaml:4: default_upstream",
        "f.yaml:6: gateway.listen[0]",
        "f.yaml:7: store.capacity",
        "f.yaml:8: stor",
    ]


def test_a_wrong_upstream_is_not_also_called_unknown() -> None:
    found = sentences("upstreams: {lab: {tag_ttl: 5}}\ndefault_upstream: lab\n")
    assert len(found) == 1
    found = sentences("upstreams: {Lab: {}}\ndefault_upstream: Lab\n")
    assert all("plain form" in line for line in found)


def test_the_number_of_sentences_is_bounded() -> None:
    found = sentences("\n".join(f"key{i}: 1" for i in range(200)))
    assert len(found) == 51
    assert found[-1] == "f.yaml: and 150 mistakes more"


def test_secrets_are_not_repeated() -> None:
    text = (
        "upstreams:\n"
        "  a: {api: 'https://user:hunter2@a'}\n"
        "  b: {password: hunter2, password_file: [hunter2]}\n"
        "  c: {auth: static, username: u, password_file: {x: hunter2}}\n"
    )
    assert "hunter2" not in "\n".join(sentences(text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    with pytest.raises(
        ConfigError, match=r"none\.yaml: the configuration cannot be read: no such file"
    ):
        load(missing)
    with pytest.raises(ConfigError, match="is a directory"):
        load(tmp_path)
    file = tmp_path / "f.yaml"
    file.write_bytes(b"# a\n# \xff\n")
    with pytest.raises(ConfigError, match=r"f\.yaml:2: expected UTF-8 text"):
        load(file)
    file.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="at most 1 MiB"):
        load(file)
    file.write_bytes(b"\xef\xbb\xbfstore: {capacity: 1 GiB}\r\n")
    assert load(file).store.capacity == 2**30


@given(
    st.text()
    | st.text("ab: {}[]&*!|>-'\"#\n\t,~<5")
    | st.lists(
        st.sampled_from(
            ["upstreams:", "\n", "  ", "a:", " {", "}", "[", "]", ",", "api: ", "http://a", "none",
             "gateway:", "default_upstream: ", "a", "5", "listen:", "- ", "'", "<<: ", "&x ", "*x"]
        )
    ).map("".join)
)  # fmt: skip
@settings(max_examples=300)
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    try:
        config = parse(text)
    except ConfigError:
        return
    assert parse(dump(config)) == config
