"""How to reach a Kafka cluster, and secrets by reference: the same for whoever reads, writes or serves.

Invariant: a secret's value is never part of a configuration, only where it is found.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from retrain.config import Section
from retrain.errors import ConfigError


class Secret(Section):
    """A secret by reference: `{ env = "NAME" }` or `{ file = "/run/secrets/name" }`; never the value itself."""

    env: str | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Secret:
        if (self.env is None) == (self.file is None):
            raise ValueError('give exactly one of env = "NAME" or file = "PATH"')
        return self

    def reveal(self) -> str:
        """The secret's value. Raises ConfigError naming the variable or file that is missing."""
        if self.env is not None:
            if not (value := os.environ.get(self.env)):
                raise ConfigError([f"environment variable {self.env} is not set: export it or use file = ..."])
            return value
        try:
            value = Path(str(self.file)).read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise ConfigError([f"secret file {self.file}: {exc.strerror}"]) from exc
        except UnicodeDecodeError as exc:
            raise ConfigError([f"secret file {self.file}: is not UTF-8 text"]) from exc
        if not value:
            raise ConfigError([f"secret file {self.file}: is empty"])
        return value


class KafkaConnection(Section):
    bootstrap: tuple[str, ...] = Field(strict=False, min_length=1, description="host:port of one or more brokers")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"] | None = None
    username: Secret | None = Field(None, description="SASL user name")
    password: Secret | None = Field(None, description="SASL password")
    ca_file: str | None = Field(None, description="PEM file of the authorities that sign the brokers")
    cert_file: str | None = Field(None, description="PEM file of the client certificate")
    key_file: str | None = Field(None, description="PEM file of the client key")

    def client_options(self) -> dict[str, Any]:
        """As kafka-python's clients take them. Raises ConfigError for a secret that is missing."""
        return {
            "bootstrap_servers": list(self.bootstrap),
            "security_protocol": self.security_protocol,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.username.reveal() if self.username else None,
            "sasl_plain_password": self.password.reveal() if self.password else None,
            "ssl_cafile": self.ca_file,
            "ssl_certfile": self.cert_file,
            "ssl_keyfile": self.key_file,
        }
