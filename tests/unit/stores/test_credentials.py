"""Where credentials are looked for, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import StoreRefused
from holdfast.stores import az, connect, oss, s3


def test_the_environment_beats_the_files_of_the_aws_tools(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[work]\naws_access_key_id = A\naws_secret_access_key = B\n")
    (tmp_path / ".aws" / "config").write_text("[profile work]\nregion = eu-west-1\nendpoint_url = https://store\n")
    environ = {"HOME": str(tmp_path), "AWS_PROFILE": "work"}

    from_files = s3.settings(environ)
    from_both = s3.settings({**environ, "AWS_ACCESS_KEY_ID": "C", "AWS_REGION": "cn-north-1"})

    assert {
        "access_key_id": "A",
        "secret_access_key": "B",
        "region": "eu-west-1",
        "endpoint": "https://store",
    } == from_files
    assert ("C", "cn-north-1") == (from_both["access_key_id"], from_both["region"])


def test_a_credentials_file_that_is_none_is_told_without_its_contents(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("hunter2\n")
    with pytest.raises(StoreRefused, match="cannot be read") as caught:
        s3.settings({"HOME": str(tmp_path)})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "where",
    [
        {"OSS_REGION": "cn-hangzhou"},
        {"OSS_ENDPOINT": "oss-cn-hangzhou.aliyuncs.com"},
        {"OSS_ENDPOINT": "https://oss-cn-hangzhou.aliyuncs.com"},
    ],
)
def test_oss_is_s3_with_the_bucket_in_the_host(where: dict[str, str], tmp_path: Path) -> None:
    keys = {"OSS_ACCESS_KEY_ID": "A", "OSS_ACCESS_KEY_SECRET": "B", "HOME": str(tmp_path)}
    found = oss.settings("runs", {**keys, **where})
    assert "https://runs.oss-cn-hangzhou.aliyuncs.com" == found["endpoint"]
    assert "oss-cn-hangzhou" == found["region"]
    assert found["virtual_hosted_style_request"] is True


def test_oss_takes_the_file_of_ossutil(tmp_path: Path) -> None:
    text = "[Credentials]\nendpoint=oss-cn-beijing-internal.aliyuncs.com\naccessKeyID=A\naccessKeySecret=B\n"
    (tmp_path / ".ossutilconfig").write_text(text)
    found = oss.settings("runs", {"HOME": str(tmp_path)})
    assert "https://runs.oss-cn-beijing-internal.aliyuncs.com" == found["endpoint"]
    assert "oss-cn-beijing" == found["region"]


@pytest.mark.parametrize("url", ["oss://runs/x", "az://runs/x"])
def test_missing_credentials_are_told_at_once(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreRefused) as caught:
        connect(url, {"HOME": str(tmp_path)})
    assert caught.value.hint.startswith("set ")


@pytest.mark.parametrize(
    ("given", "missing"),
    [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")],
)
def test_half_of_a_key_pair_is_told(given: str, missing: str, tmp_path: Path) -> None:
    with pytest.raises(StoreRefused) as caught:
        connect("s3://runs/x", {"HOME": str(tmp_path), given: "k3y"})
    assert str(caught.value) == f"s3://runs/x: {given} is given, {missing} is not"


def test_azure_and_google_are_built_from_their_variables(tmp_path: Path) -> None:
    account = {"AZURE_STORAGE_ACCOUNT_NAME": "holdfast", "AZURE_STORAGE_ACCOUNT_KEY": "aGVsbG8="}
    assert "az://runs/x" == connect("az://runs/x", account).url
    with pytest.raises(StoreRefused, match="cannot be read"):
        connect("gs://runs/x", {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json")})


def test_every_scheme_of_the_table_has_a_module() -> None:
    from holdfast.urls import SCHEMES

    folder = Path(az.__file__).parent
    shared = {"__init__", "base", "refusal", "remote", "retry"}
    assert set(SCHEMES) == {path.stem for path in folder.glob("*.py")} - shared
