"""How to reach a Kafka cluster: the same for whoever reads, writes or serves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from retrain.terms.fields import Secret, Section


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
