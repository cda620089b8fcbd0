"""Django settings: everything that differs between machines comes from `MDI_` variables (docs/configuration.md).

A server whose URL is not set is the embedded one under `var/`; this module only computes its address, it starts nothing.
"""

import os
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from config.embedded import endpoints
from config.env import load
from config.logging import configure
from config.schedule import BEAT_SCHEDULE
from config.unfold import UNFOLD  # noqa: F401  # read by the admin theme

BASE_DIR = Path(__file__).resolve().parent.parent
MDI = load(os.environ)
_embedded = endpoints(MDI.var_dir)

DATABASE_URL = MDI.database_url or _embedded.database_url
REDIS_URL = MDI.redis_url or _embedded.redis_url
PULSAR_URL = MDI.pulsar_url or _embedded.pulsar_url
PULSAR_ADMIN_URL = MDI.pulsar_admin_url if MDI.pulsar_url else _embedded.pulsar_admin_url
PULSAR_TOKEN = MDI.pulsar_token if MDI.pulsar_url else _embedded.pulsar_token
PULSAR_FEED_TOKEN = MDI.pulsar_token if MDI.pulsar_url else _embedded.pulsar_feed_token

SECRET_KEY = MDI.secret_key
DEBUG = MDI.debug
ALLOWED_HOSTS = MDI.allowed_hosts
ACCESS_TOKEN = MDI.access_token

INSTALLED_APPS = [
    "daphne",
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "channels",
    "rest_framework",
    "strawberry_django",
    "django_celery_beat",
    "config",
    "integration",
    "quality",
    "corporate_actions",
    "distribution",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "distribution.access.ContentSecurityPolicy",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"
TICK_PIPELINE = "config.pipeline.build"
TICK_SEQUENCER = "config.pipeline.build_sequencer"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

_database = urlsplit(DATABASE_URL)
# What libpq takes in an address works here too: host=/folder/of/socket, sslmode, sslrootcert, …
_database_options = dict(parse_qsl(_database.query))
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _database.path.lstrip("/"),
        "USER": unquote(_database.username or ""),
        "PASSWORD": unquote(_database.password or ""),
        "HOST": _database_options.pop("host", "") or _database.hostname or "",
        "PORT": _database_options.pop("port", "") or _database.port or "",
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            "pool": {"min_size": 1, "max_size": 40, "timeout": 10} if MDI.database_pool else False,
            "application_name": "mdi",
            "options": f"-c statement_timeout={MDI.statement_timeout_ms} -c idle_in_transaction_session_timeout=60000",
            **_database_options,
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": REDIS_URL, "KEY_PREFIX": "mdi"}
}
CHANNEL_LAYERS = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [REDIS_URL]}}}
SESSION_ENGINE = "django.contrib.sessions.backends.db"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_NAME = f"mdi_session_{MDI.port}"
CSRF_COOKIE_NAME = f"mdi_csrf_{MDI.port}"

CELERY_BROKER_URL = REDIS_URL
CELERY_TASK_IGNORE_RESULT = True
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_SCHEDULE = BEAT_SCHEDULE
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {"socket_timeout": 2, "socket_connect_timeout": 2}

PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "/"

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
FORMAT_MODULE_PATH = ["config.formats"]
STATIC_URL = "static/"
STATIC_ROOT = MDI.var_dir / "static"
STATICFILES_DIRS = [
    (package, BASE_DIR / "node_modules" / package / "dist")
    for package in ("lightweight-charts", "uplot", "htmx.org")
    if (BASE_DIR / "node_modules" / package / "dist").is_dir()
]
WHITENOISE_USE_FINDERS = True
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"

# Names of the topics: the tenant and namespaces are ours to choose, the contract names them (docs/events.md).
NORMALIZED_TOPICS = {
    asset_class: f"persistent://{MDI.pulsar_tenant}/{MDI.normalized_namespace}/{asset_class}"
    for asset_class in ("equities", "fixed-income", "currencies", "commodities", "alternative")
}
INTEGRATED_TOPICS = {
    name: f"persistent://{MDI.pulsar_tenant}/{MDI.integrated_namespace}/{name}"
    for name in ("ticks", "bars", "corporate-actions", "quality")
}
CANARY_TOPIC = f"persistent://{MDI.pulsar_tenant}/canary/heartbeat"
CANARY_ECHO_TOPIC = f"persistent://{MDI.pulsar_tenant}/canary/echo"

LOGGING = configure(MDI.log_format, MDI.log_level)
