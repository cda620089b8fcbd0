"""What must exist in a Pulsar broker: tenant, namespaces, topics, and who may do what. By the admin REST interface, repeatable.

Used for the embedded broker, for an external one whose admin address is set, and for the namespaces of tests.
"""

import base64
import hashlib
import hmac
import json
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from config.embedded.runtime import EmbeddedServerError

CLUSTER = "a"
TENANT = "market-data"
ADMIN_ROLE, SERVICE_ROLE, FEED_ROLE = "admin", "mdi-service", "mdi-feed"
NORMALIZED_TOPICS = ("equities", "fixed-income", "currencies", "commodities", "alternative")
INTEGRATED_TOPICS = ("ticks", "bars", "corporate-actions", "quality")
CANARY_TOPICS = ("heartbeat", "echo")
BOTH = ("consume", "produce")
TIMEOUT_SECONDS = 15
POLL_SECONDS = 0.1


def mint_token(key: bytes, role: str) -> str:
    """Return a JSON Web Token (RFC 7519, HS256) that names a role."""

    def encode(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    signed = encode(b'{"alg":"HS256"}') + "." + encode(json.dumps({"sub": role}, separators=(",", ":")).encode())
    return signed + "." + encode(hmac.new(key, signed.encode(), hashlib.sha256).digest())


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace: its topics (partition count, 0 for one without partitions) and the roles' permissions."""

    tenant: str
    name: str
    topics: dict[str, int]
    permissions: dict[str, tuple[str, ...]]
    is_deduplicated: bool = False


@dataclass(frozen=True, slots=True)
class BrokerAdmin:
    """The admin interface of a broker: address, an administrator's token, and the authority that signed its certificate."""

    url: str
    token: str
    ca_file: str = ""

    def is_healthy(self, timeout: float = 3.0) -> bool:
        """Return whether the broker can store and read a message; its process alone tells nothing."""
        try:
            return self.call("GET", "brokers/health", timeout=timeout)[1] == b"ok"
        except EmbeddedServerError:
            return False

    def call(
        self, method: str, path: str, body: object = None, *, timeout: float = TIMEOUT_SECONDS
    ) -> tuple[int, bytes]:
        """Send one request to /admin/v2/PATH and return status and body; "exists already" (409) and "not there" (404) are answers.

        Raises EmbeddedServerError naming the address when the broker refuses or does not answer.
        """
        request = urllib.request.Request(f"{self.url}/admin/v2/{path}", method=method)  # noqa: S310 - our own setting
        request.add_header("Authorization", f"Bearer {self.token}")
        request.add_header("Content-Type", "application/json")
        data = None if body is None else json.dumps(body).encode()
        try:
            # The context counts only where the address is https.
            context = ssl.create_default_context(cafile=self.ca_file or None)
            with urllib.request.urlopen(request, data, timeout=timeout, context=context) as answer:  # noqa: S310
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            if error.code in (404, 409):
                return error.code, error.read()
            raise EmbeddedServerError(
                f"broker at {self.url} refuses {method} {path}: {error.code} {error.reason}"
            ) from error
        except OSError as error:
            raise EmbeddedServerError(
                f"broker at {self.url} does not answer: {getattr(error, 'reason', error)}"
            ) from error


def service_namespaces(
    partitions: int, tenant: str = TENANT, normalized: str = "normalized", integrated: str = "integrated"
) -> list[Namespace]:
    """Return the namespaces of an installation."""
    inputs, outputs = dict.fromkeys(NORMALIZED_TOPICS, partitions), dict.fromkeys(INTEGRATED_TOPICS, 0)
    return [
        Namespace(tenant, normalized, inputs, {SERVICE_ROLE: BOTH, FEED_ROLE: ("produce",)}),
        Namespace(tenant, integrated, outputs, {SERVICE_ROLE: BOTH}, is_deduplicated=True),
        Namespace(tenant, "canary", dict.fromkeys(CANARY_TOPICS, 0), {SERVICE_ROLE: BOTH}),
    ]


def ensure_topology(admin: BrokerAdmin, namespaces: list[Namespace]) -> None:
    """Make the tenants and everything in them that is missing; what is there stays, partitions only grow."""
    clusters = known_clusters(admin)
    for tenant in {namespace.tenant for namespace in namespaces}:
        admin.call("PUT", f"tenants/{tenant}", {"adminRoles": [], "allowedClusters": clusters})
    for namespace in namespaces:
        ensure_namespace(admin, namespace)


def known_clusters(admin: BrokerAdmin) -> list[str]:
    """Return the broker's clusters; one that has just started may answer before it has written down its own."""
    patience = time.monotonic() + TIMEOUT_SECONDS
    while True:
        clusters: list[str] = json.loads(admin.call("GET", "clusters")[1])
        if clusters or time.monotonic() > patience:
            return clusters
        time.sleep(POLL_SECONDS)


def ensure_namespace(admin: BrokerAdmin, namespace: Namespace) -> None:
    """Make a namespace with its permissions and topics; the tenant is there."""
    path = f"{namespace.tenant}/{namespace.name}"
    admin.call("PUT", f"namespaces/{path}", {})
    if namespace.is_deduplicated:
        admin.call("POST", f"namespaces/{path}/deduplication", True)
    for role, actions in namespace.permissions.items():
        admin.call("POST", f"namespaces/{path}/permissions/{role}", list(actions))
    for topic, partitions in namespace.topics.items():
        ensure_topic(admin, f"persistent/{path}/{topic}", partitions)


def ensure_topic(admin: BrokerAdmin, topic: str, partitions: int) -> None:
    """Make a topic; one that has fewer partitions than asked gets more."""
    if partitions == 0:
        admin.call("PUT", topic)
        return
    status, _ = admin.call("PUT", f"{topic}/partitions", partitions)
    if status == 409:
        present = json.loads(admin.call("GET", f"{topic}/partitions")[1])["partitions"]
        if present < partitions:
            admin.call("POST", f"{topic}/partitions", partitions)


def delete_namespace(admin: BrokerAdmin, name: str, tenant: str = TENANT) -> None:
    """Delete a namespace with all messages in it."""
    admin.call("DELETE", f"namespaces/{tenant}/{name}?force=true")
