"""gs://BUCKET/PREFIX: Google Cloud Storage.

Credentials: GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT (a file), else what `gcloud auth
application-default login` left, else the machine's service account.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from holdfast.errors import StoreRefused
from holdfast.stores.base import Store
from holdfast.stores.retry import Patience

if TYPE_CHECKING:
    from obstore.store import GCSConfig


def connect(url: str, environ: Mapping[str, str], patience: Patience) -> Store:
    """A bucket. Raises StoreRefused when the file of credentials is not one."""
    from obstore.exceptions import BaseError
    from obstore.store import GCSStore

    from holdfast.stores.remote import CLIENT, NO_RETRIES, RemoteStore

    parts = urlsplit(url)
    names = {"GOOGLE_APPLICATION_CREDENTIALS": "application_credentials", "GOOGLE_SERVICE_ACCOUNT": "service_account"}
    config = {key: environ[name] for name, key in names.items() if environ.get(name)}
    try:
        client = GCSStore(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            config=cast("GCSConfig", config),
            client_options=CLIENT,
            retry_config=NO_RETRIES,
        )
    except (BaseError, OSError) as error:
        raise StoreRefused(
            f"{url}: the credentials cannot be read", hint="is GOOGLE_APPLICATION_CREDENTIALS a key file?"
        ) from error
    return RemoteStore(url, client, patience)
