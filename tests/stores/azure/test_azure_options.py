"""Options, storage paths and environment of an Azure store: which account, which authorization, and what is shown."""

import base64

import pytest

from asyncsync.errors import ConfigError
from asyncsync.stores.azure.options import AzureOptions, account_of, check_no_proxy, location_of

KEY = base64.b64encode(b"k" * 32).decode()
SAS = "sv=2021-12-02&ss=b&srt=sco&sp=rwdlac&se=2030-01-01T00%3A00%3A00Z&sig=c2VjcmV0%3D"
CONNECTION = f"DefaultEndpointsProtocol=https;AccountName=fromtext;AccountKey={KEY};EndpointSuffix=core.windows.net"
SECRETS = (KEY, "c2VjcmV0", "eyJtoken")


def resolve(uri="az://box/run", environ=None, **options):
    return account_of(AzureOptions.parse(options), location_of(uri), environ or {})


# Storage paths


@pytest.mark.parametrize(
    ("uri", "container", "prefix", "account", "endpoint"),
    [
        ("az://box", "box", "", "", ""),
        ("az://box/a/b c/", "box", "a/b c", "", ""),
        ("abfs://box/a", "box", "a", "", ""),
        ("abfss://box@acct.dfs.core.windows.net/a", "box", "a", "acct", "https://acct.blob.core.windows.net"),
        ("abfss://box@acct.blob.core.windows.net/a", "box", "a", "acct", "https://acct.blob.core.windows.net"),
        (
            "abfss://box@acct.dfs.core.chinacloudapi.cn/a",
            "box",
            "a",
            "acct",
            "https://acct.blob.core.chinacloudapi.cn",
        ),
        ("https://acct.blob.core.windows.net/box/a%20b", "box", "a b", "acct", "https://acct.blob.core.windows.net"),
        ("https://acct.z12.blob.storage.azure.net/box", "box", "", "acct", "https://acct.z12.blob.storage.azure.net"),
        ("az://$root/a", "$root", "a", "", ""),
    ],
)
def test_a_storage_path_names_container_prefix_and_account(uri, container, prefix, account, endpoint):
    found = location_of(uri)
    assert (found.container, found.prefix, found.account, found.endpoint) == (container, prefix, account, endpoint)


@pytest.mark.parametrize(
    "uri",
    [
        "az://",
        "az:///a",
        "az://UPPER/a",
        "az://two--dashes/a",
        "az://ab/a",
        "az://-box/a",
        "az://user:eyJtoken@box/a",
        "abfss://box@example.org/a",
        "abfss://box@acct:eyJtoken@dfs/a",
        "https://example.org/box/a",
        "https://acct.blob.core.windows.net/",
        "http://acct.blob.core.windows.net/box",
        "https://user:eyJtoken@acct.blob.core.windows.net/box",
        "az://box/a?account_key=eyJtoken",
        "https://acct.blob.core.windows.net/box?sig=c2VjcmV0 x",
    ],
)
def test_a_storage_path_that_is_none_is_refused_without_its_secrets(uri):
    with pytest.raises(ConfigError) as caught:
        location_of(uri)
    assert not any(secret in str(caught.value) for secret in SECRETS)


def test_a_sas_in_the_storage_path_authorizes():
    account = resolve(f"https://acct.blob.core.windows.net/box/run?{SAS}")
    assert (account.name, account.sas) == ("acct", SAS)


def test_a_sas_in_the_storage_path_and_an_option_contradict():
    with pytest.raises(ConfigError, match="give one"):
        resolve(f"https://acct.blob.core.windows.net/box/run?{SAS}", account_key=KEY)


# Authorization


@pytest.mark.parametrize(
    ("options", "environ", "expected"),
    [
        ({"account_key": KEY}, {}, "key"),
        ({"sas_token": f"?{SAS}"}, {}, "sas"),
        ({"token": "eyJtoken"}, {}, "token"),
        ({"anonymous": True}, {"AZURE_STORAGE_KEY": KEY}, "nothing"),
        ({"credential": "managed"}, {"AZURE_STORAGE_KEY": KEY}, "managed"),
        ({"credential": "workload"}, {}, "workload"),
        ({"credential": "cli"}, {}, "cli"),
        ({}, {}, "default"),
        ({}, {"AZURE_STORAGE_KEY": KEY}, "key"),
        ({}, {"AZURE_STORAGE_ACCOUNT_KEY": KEY}, "key"),
        ({}, {"AZURE_STORAGE_SAS_TOKEN": SAS}, "sas"),
        ({"sas_token": SAS}, {"AZURE_STORAGE_KEY": KEY}, "sas"),
        ({"account_key": KEY}, {"AZURE_STORAGE_SAS_TOKEN": SAS}, "key"),
    ],
)
def test_options_go_before_the_environment_and_that_before_identity(options, environ, expected):
    account = resolve(environ=environ, account="acct", **options)
    found = next((name for name in ("key", "sas", "token") if getattr(account, name)), account.credential or "nothing")
    assert found == expected
    assert account.endpoint == "https://acct.blob.core.windows.net"


@pytest.mark.parametrize(
    ("options", "environ"),
    [({"connection_string": CONNECTION}, {}), ({}, {"AZURE_STORAGE_CONNECTION_STRING": CONNECTION})],
)
def test_a_connection_string_gives_account_and_key(options, environ):
    account = resolve(environ=environ, **options)
    assert (account.name, account.key) == ("fromtext", b"k" * 32)
    assert account.endpoint == "https://fromtext.blob.core.windows.net"


def test_a_connection_string_may_have_an_endpoint_and_a_sas():
    text = f"BlobEndpoint=https://other.blob.core.windows.net/;SharedAccessSignature={SAS}"
    account = resolve(connection_string=text)
    assert (account.name, account.endpoint, account.sas) == ("other", "https://other.blob.core.windows.net", SAS)


def test_development_storage_is_the_emulator():
    account = resolve(connection_string="UseDevelopmentStorage=true")
    assert (account.name, account.endpoint) == ("devstoreaccount1", "http://127.0.0.1:10000/devstoreaccount1")
    assert account.key


def test_a_connection_string_of_another_account_does_not_apply():
    account = resolve("abfss://box@acct.dfs.core.windows.net/a", {"AZURE_STORAGE_CONNECTION_STRING": CONNECTION})
    assert (account.name, account.key, account.credential) == ("acct", b"", "default")


@pytest.mark.parametrize("name", ["AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"])
def test_the_environment_names_the_account(name):
    assert resolve(environ={name: "acct"}).name == "acct"


def test_the_account_may_be_that_of_the_endpoint():
    assert resolve(endpoint_url="https://acct.blob.core.windows.net", account_key=KEY).name == "acct"
    assert resolve(endpoint_url="http://127.0.0.1:10000/devstoreaccount1", account_key=KEY).name == "devstoreaccount1"


@pytest.mark.parametrize("text", ["nonsense", "AccountKey=x", "Account Name=x;y=z", f"AccountKey={KEY}"])
def test_a_malformed_connection_string_is_refused(text):
    with pytest.raises(ConfigError) as caught:
        resolve(connection_string=text)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"account": "Upper"},
        {"account": "acct.blob.core.windows.net"},
        {"account_key": "not base64!"},
        {"account_key": KEY, "sas_token": SAS},
        {"token": "eyJtoken", "anonymous": True},
        {"token": "eyJtoken two"},
        {"sas_token": "sv=2021"},
        {"sas_token": f"{SAS}\r\nhost: x"},
        {"credential": "password"},
        {"access_tier": "Archive"},
        {"endpoint_url": f"https://acct.blob.core.windows.net?{SAS}"},
        {"endpoint_url": f"ftp://x?{SAS}"},
        {"endpoint_url": "https://"},
        {"endpoint_url": "http://127.0.0.1:70000"},
        {"secret": "x"},
        {"credential": "managed", "endpoint_url": "http://127.0.0.1:10000"},
    ],
)
def test_options_that_cannot_work_are_refused_without_their_secrets(options):
    with pytest.raises(ConfigError) as caught:
        resolve(**{"account": "acct"} | options)
    assert not any(secret in str(caught.value) for secret in SECRETS)


def test_without_an_account_the_error_names_the_ways_to_give_one():
    with pytest.raises(ConfigError, match="AZURE_STORAGE_ACCOUNT"):
        resolve()


def test_another_account_than_that_of_the_storage_path_is_refused():
    with pytest.raises(ConfigError, match="other"):
        resolve("abfss://box@acct.dfs.core.windows.net/a", account="other")


def test_nothing_of_the_environment_that_can_be_read_goes_over_plain_http():
    """A SAS and a token would travel readable."""
    with pytest.raises(ConfigError, match="nothing authorizes"):
        resolve(environ={"AZURE_STORAGE_SAS_TOKEN": SAS}, endpoint_url="http://127.0.0.1:1/acct", account="acct")
    assert resolve(environ={"AZURE_STORAGE_KEY": KEY}, endpoint_url="http://127.0.0.1:1/acct", account="acct").key


def test_no_repr_shows_a_secret():
    for options in ({"account_key": KEY}, {"sas_token": SAS}, {"token": "eyJtoken"}, {"connection_string": CONNECTION}):
        parsed = AzureOptions.parse({"account": "fromtext"} | options)
        shown = f"{parsed!r} {account_of(parsed, location_of('az://box/run'), {})!r}"
        assert not any(secret in shown for secret in SECRETS), shown
    assert "c2VjcmV0" not in repr(location_of(f"https://acct.blob.core.windows.net/box?{SAS}"))


def test_a_proxy_in_the_environment_is_refused_before_the_first_request(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://user:eyJtoken@proxy:3128")
    with pytest.raises(ConfigError, match="no_proxy") as caught:
        check_no_proxy("https://acct.blob.core.windows.net")
    assert "eyJtoken" not in str(caught.value)
    monkeypatch.setenv("no_proxy", ".core.windows.net")
    check_no_proxy("https://acct.blob.core.windows.net")


def test_the_tier_applies_to_data_only():
    options = AzureOptions.parse({"access_tier": "Cool", "encryption_scope": "s"})
    assert options.blob_headers() == {"x-ms-access-tier": "Cool", "x-ms-encryption-scope": "s"}
    assert options.blob_headers(data=False) == {"x-ms-encryption-scope": "s"}
