"""Every decision of passel, as machines and array functions without I/O, clock or dice."""
