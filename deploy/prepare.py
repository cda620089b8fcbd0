"""Make what deploy/compose.yaml needs in deploy/secrets, once: an authority, certificates, passwords, tokens, configuration files.

    python deploy/prepare.py [HOST NAME ...]      host names that the web server answers to (default: localhost)

Files are 0600 in a folder of 0700. What exists is kept: run it again after an upgrade. To begin anew, remove the folder.
"""

import ipaddress
import os
import secrets
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from config.embedded.pulsar import BROKER  # noqa: E402 - the repository's own folder comes first
from config.embedded.topology import ADMIN_ROLE, CLUSTER, SERVICE_ROLE, mint_token  # noqa: E402

SERVERS: Final = ("postgres", "standby", "valkey", "pulsar")
# The images run their servers under these numbers; PostgreSQL refuses a key that others may read.
OWNERS: Final = {"postgres": 999, "standby": 999, "valkey": 999, "pulsar": 10_000}
YEARS: Final = 3
# What holds only for the embedded broker: its addresses and small memory.
_EMBEDDED_ONLY: Final = (
    "bindAddress", "listeningInterface", "allowLoopback", "metadataStoreUrl", "allowEphemeralPorts", "loadManagerClassName",
    "dbStorage_writeCacheMaxSizeMb", "dbStorage_readAheadCacheMaxSizeMb", "maxMessagePublishBufferSizeInMB", "managedLedgerCacheSizeMB",
)  # fmt: skip


def main(folder: Path, hosts: list[str]) -> None:
    """Make everything that is missing."""
    folder.mkdir(mode=0o700, exist_ok=True)
    authority = certificates(folder)
    words = {
        name: text(folder / f"{name}.password", secrets.token_hex(32))
        for name in ("postgres", "service", "replicator", "valkey")
    }
    token_key = raw(folder / "pulsar-token.key", secrets.token_bytes(32))
    text(folder / "postgres.env", postgres_environment(words))
    text(folder / "valkey.conf", valkey_configuration(words["valkey"]))
    text(folder / "standalone.conf", broker_configuration(token_key))
    text(folder / "service.env", service_environment(words, token_key, hosts))
    # Later files win: this one makes an administrator of the command that makes the topics.
    text(folder / "topics.env", f"MDI_PULSAR_TOKEN={mint_token(token_key, ADMIN_ROLE)}\n")
    print(f"{folder}: ready; the authority is valid until {authority:%Y-%m-%d}")


def raw(path: Path, content: bytes) -> bytes:
    """Return what a file holds, which is written where it is missing."""
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
    return path.read_bytes()


def text(path: Path, content: str) -> str:
    """Return the text that a file holds, which is written where it is missing."""
    return raw(path, content.encode()).decode()


def certificates(folder: Path) -> datetime:
    """Make the authority and a certificate for each server; return until when the authority is valid."""
    key_file, file = folder / "ca.key", folder / "ca.pem"
    if not file.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        raw(key_file, private(key))
        raw(file, certificate("market data integration", key, None, key))
    authority = x509.load_pem_x509_certificate(file.read_bytes())
    signer = serialization.load_pem_private_key(key_file.read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)  # noqa: S101 - made above
    for name in SERVERS:
        if not (folder / f"{name}.pem").exists():
            key = ec.generate_private_key(ec.SECP256R1())
            raw(folder / f"{name}.key", private(key))
            raw(folder / f"{name}.pem", certificate(name, key, authority, signer))
            if os.geteuid() == 0:
                os.chown(folder / f"{name}.key", OWNERS[name], OWNERS[name])
    return authority.not_valid_after_utc


def private(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a key as unencrypted PKCS 8, which all the servers read."""
    encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, kind, serialization.NoEncryption())


def certificate(
    name: str, key: ec.EllipticCurvePrivateKey, authority: x509.Certificate | None, signer: ec.EllipticCurvePrivateKey
) -> bytes:
    """Sign a certificate for a server by its name in the compose network, or the authority's own."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    names = [x509.DNSName(name), x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
    )
    if authority is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def postgres_environment(words: dict[str, str]) -> str:
    """Return the passwords that the database's images take."""
    return (
        f"POSTGRES_PASSWORD={words['postgres']}\nSERVICE_PASSWORD={words['service']}\nREPLICATOR_PASSWORD={words['replicator']}\n"
        "POSTGRES_INITDB_ARGS=--auth=scram-sha-256\n"
    )


def valkey_configuration(password: str) -> str:
    """Return a configuration that speaks TLS alone and keeps what it has on disk."""
    return (
        "port 0\ntls-port 6379\ntls-cert-file /run/tls/valkey.pem\ntls-key-file /run/tls/valkey.key\ntls-ca-cert-file /run/tls/ca.pem\n"
        f"tls-auth-clients no\nrequirepass {password}\ndir /data\nappendonly yes\nmaxmemory 1gb\nmaxmemory-policy noeviction\n"
    )


def broker_configuration(token_key: bytes) -> str:
    """Return the embedded broker's configuration with the addresses, keys and certificates of this one."""
    settings = {name: value for name, value in BROKER.items() if name not in _EMBEDDED_ONLY}
    settings |= {
        "clusterName": CLUSTER, "advertisedAddress": "pulsar", "brokerServicePort": "", "webServicePort": "",
        "brokerServicePortTls": "6651", "webServicePortTls": "8443", "tlsCertificateFilePath": "/run/tls/pulsar.pem", "tlsKeyFilePath": "/run/tls/pulsar.key",
        "tlsTrustCertsFilePath": "/run/tls/ca.pem", "tokenSecretKey": "file:///run/mdi/pulsar-token.key", "brokerClientTlsEnabled": "true",
        "brokerClientTrustCertsFilePath": "/run/tls/ca.pem", "brokerClientAuthenticationParameters": f"token:{mint_token(token_key, ADMIN_ROLE)}",
    }  # fmt: skip
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def service_environment(words: dict[str, str], token_key: bytes, hosts: list[str]) -> str:
    """Return the settings of the service: addresses with certificates verified, and its secrets."""
    settings = {
        "DATABASE_URL": f"postgresql://mdi:{words['service']}@postgres:5432/mdi?sslmode=verify-full&sslrootcert=/run/tls/ca.pem",
        "REDIS_URL": f"rediss://:{words['valkey']}@valkey:6379/0?ssl_ca_certs=/run/tls/ca.pem&ssl_cert_reqs=required",
        "PULSAR_URL": "pulsar+ssl://pulsar:6651",
        "PULSAR_CA_FILE": "/run/tls/ca.pem",
        "PULSAR_TOKEN": mint_token(token_key, SERVICE_ROLE),
        "PULSAR_ADMIN_URL": "https://pulsar:8443",
        "SECRET_KEY": secrets.token_hex(32),
        "METRICS_TOKEN": secrets.token_hex(32),
        "ALLOWED_HOSTS": ",".join([*hosts, "127.0.0.1"]),
        "DEMO": "0",
        "LOG_FORMAT": "json",
    }
    return "".join(f"MDI_{name}={value}\n" for name, value in settings.items())


if __name__ == "__main__":
    main(HERE / "secrets", sys.argv[1:] or ["localhost"])
