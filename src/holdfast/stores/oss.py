"""oss://BUCKET/PREFIX: Alibaba Cloud, through its S3 interface, the bucket in the host's name.

Credentials: OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET, OSS_SESSION_TOKEN (or the same behind ALIBABA_CLOUD_); else
~/.ossutilconfig. Where: OSS_ENDPOINT (oss-cn-hangzhou.aliyuncs.com), or OSS_REGION (cn-hangzhou).
Source: https://www.alibabacloud.com/help/en/oss/developer-reference/use-amazon-s3-sdks-to-access-oss
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from holdfast.errors import StoreRefused
from holdfast.stores.base import Store
from holdfast.stores.retry import Patience
from holdfast.stores.s3 import connect_with

_REGION = re.compile(r"(?:^|[./])(?:s3\.)?oss-([a-z0-9-]+?)(?:-internal)?\.aliyuncs\.com")
_NAMES = {
    "access_key_id": ("OSS_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_ID"),
    "secret_access_key": ("OSS_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_ACCESS_KEY_SECRET"),
    "session_token": ("OSS_SESSION_TOKEN", "ALIBABA_CLOUD_SECURITY_TOKEN"),
}
_IN_FILE = {"access_key_id": "accesskeyid", "secret_access_key": "accesskeysecret", "session_token": "ststoken"}


def connect(url: str, environ: Mapping[str, str], patience: Patience) -> Store:
    """A bucket. Raises StoreRefused when neither endpoint nor region is known, or there are no credentials."""
    return connect_with(url, settings(urlsplit(url).netloc, environ), patience)


def settings(bucket: str, environ: Mapping[str, str]) -> dict[str, str | bool]:
    """What obstore needs to know of `bucket`."""
    file = _file(environ)
    given: dict[str, str | bool] = {}
    for name, variables in _NAMES.items():
        value = next((environ[one] for one in variables if environ.get(one)), file.get(_IN_FILE[name], ""))
        if value:
            given[name] = value
    if "access_key_id" not in given or "secret_access_key" not in given:
        raise StoreRefused(
            f"oss://{bucket}: there are no credentials", hint="set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET"
        )
    endpoint, region = _place(bucket, environ, file)
    host = f"{'' if '://' in endpoint else 'https://'}{endpoint}"
    scheme, _, rest = host.partition("://")
    return {**given, "region": region, "endpoint": f"{scheme}://{bucket}.{rest}", "virtual_hosted_style_request": True}


def _place(bucket: str, environ: Mapping[str, str], file: Mapping[str, str]) -> tuple[str, str]:
    """Endpoint and region; each is known from the other."""
    endpoint = environ.get("OSS_ENDPOINT") or file.get("endpoint", "")
    region = (environ.get("OSS_REGION") or file.get("region", "")).removeprefix("oss-")
    found = _REGION.search(endpoint)
    region = region or (found[1] if found else "")
    endpoint = endpoint or (f"oss-{region}.aliyuncs.com" if region else "")
    if not endpoint or not region:
        raise StoreRefused(f"oss://{bucket}: where the bucket lies is not known", hint="set OSS_REGION=cn-hangzhou")
    return endpoint, f"oss-{region}"


def _file(environ: Mapping[str, str]) -> Mapping[str, str]:
    path = Path(environ.get("HOME") or Path.home()) / ".ossutilconfig"
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        raise StoreRefused(f"{path} cannot be read: {type(error).__name__}") from error
    return next((parser[name] for name in ("Credentials", "default") if parser.has_section(name)), {})
