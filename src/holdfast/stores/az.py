"""az://CONTAINER/PREFIX: Azure Blob Storage.

The account: AZURE_STORAGE_ACCOUNT_NAME. Credentials: AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_KEY, or
AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID, or a managed identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from holdfast.errors import StoreRefused
from holdfast.stores.base import Store
from holdfast.stores.retry import Patience

if TYPE_CHECKING:
    from obstore.store import AzureConfig

_NAMES = {
    "AZURE_STORAGE_ACCOUNT_NAME": "account_name",
    "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
    "AZURE_STORAGE_SAS_KEY": "sas_key",
    "AZURE_STORAGE_ENDPOINT": "endpoint",
    "AZURE_CLIENT_ID": "client_id",
    "AZURE_CLIENT_SECRET": "client_secret",
    "AZURE_TENANT_ID": "tenant_id",
}


def connect(url: str, environ: Mapping[str, str], patience: Patience) -> Store:
    """A container. Raises StoreRefused when the account is not known or a key is malformed."""
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore

    from holdfast.stores.remote import CLIENT, NO_RETRIES, RemoteStore

    parts = urlsplit(url)
    config = {key: environ[name] for name, key in _NAMES.items() if environ.get(name)}
    if "account_name" not in config:
        raise StoreRefused(f"{url}: the storage account is not known", hint="set AZURE_STORAGE_ACCOUNT_NAME")
    try:
        client = AzureStore(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            config=cast("AzureConfig", config),
            client_options={**CLIENT, "allow_http": config.get("endpoint", "").startswith("http://")},
            retry_config=NO_RETRIES,
        )
    except BaseError as error:
        raise StoreRefused(
            f"{url}: the credentials are malformed", hint="AZURE_STORAGE_ACCOUNT_KEY is base64"
        ) from error
    return RemoteStore(url, client, patience)
