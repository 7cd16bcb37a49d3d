"""Configuration: four sources, one order, and a sentence for each mistake."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from pydantic_settings import BaseSettings

from histofed.base.config import changed, explain, load
from histofed.base.errors import ConfigError
from histofed.base.schema_pydantic import Section
from tests.support.failing_disk import hide


class Listen(Section):
    """Where it listens."""

    grpc: str = "0.0.0.0:8443"
    port: int = Field(default=8443, ge=0, le=65535)
    names: tuple[str, ...] = ()


class Trainer(Section):
    """How it trains."""

    threads: int = 0
    device: str = "auto"


class Agent(Section):
    """A daemon's configuration."""

    state: Path = Path("/var/lib/histofed")
    site: str | None = None
    listen: Listen = Listen()
    trainer: Trainer | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    sites: tuple[Trainer, ...] = ()


@dataclass(frozen=True)
class Tls:
    """A table of the operator's configuration."""

    ca: Path = Path("ca.crt")
    strict: bool = True


@dataclass(frozen=True)
class Operator:
    """The operator's configuration."""

    aggregator: str
    tls: Tls = field(default_factory=Tls)
    seconds: float = 10.0
    tries: int = 3
    names: tuple[str, ...] = ()
    site: str | None = None


def read(model: Any, path: Path | None, environ: dict[str, str] | None = None, **flags: Any) -> Any:
    return load(
        model, name="agent", path=path, flags={k.replace("__", "."): v for k, v in flags.items()}, environ=environ or {}
    )


def refused(model: Any, path: Path | None, environ: dict[str, str] | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(model, path, environ, **flags)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text('# a comment\nstate = "/srv/histofed"\n\n[listen]\ngrpc = "10.0.0.1:8443"\nport = 1\n')
    return path


# -- order of sources ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Agent])
def test_without_anything_there_are_defaults(model: Any) -> None:
    loaded = read(model, None)
    assert loaded.config == model()
    assert loaded.sources == {}


def test_a_file_is_above_defaults(file: Path) -> None:
    config = read(Agent, file).config
    assert isinstance(config, Agent)
    assert (config.state, config.listen.grpc, config.listen.names) == (Path("/srv/histofed"), "10.0.0.1:8443", ())


def test_conf_d_is_merged_in_the_order_of_its_names(file: Path) -> None:
    (file.parent / "conf.d").mkdir()
    (file.parent / "conf.d" / "20-last.toml").write_text("listen.port = 20\n")
    (file.parent / "conf.d" / "10-first.toml").write_text('listen = {port = 10, names = ["a"]}\n')
    (file.parent / "conf.d" / "ignored.txt").write_text("not toml")
    listen = read(Agent, file).config.listen
    assert (listen.grpc, listen.port, listen.names) == ("10.0.0.1:8443", 20, ("a",))


def test_the_environment_is_above_files_and_flags_are_above_the_environment(file: Path) -> None:
    environ = {"HISTOFED_LISTEN__GRPC": "10.0.0.2:1", "HISTOFED_LISTEN__PORT": "2", "HISTOFED_STATE": "/env"}
    config = read(Agent, file, environ, listen__port=3, state=None).config
    assert (config.listen.grpc, config.listen.port, config.state) == ("10.0.0.2:1", 3, Path("/env"))


def test_lists_and_tables_in_the_environment_are_json(file: Path) -> None:
    environ = {"HISTOFED_LISTEN__NAMES": '["a", "b"]', "HISTOFED_LABELS": '{"x": "y"}', "HISTOFED_TRAINER__THREADS": "2"}
    config = read(Agent, file, environ).config
    assert config.listen.names == ("a", "b")
    assert config.labels == {"x": "y"}
    assert config.trainer == Trainer(threads=2)


def test_variables_that_belong_to_others_are_left_alone(file: Path) -> None:
    environ = {
        "HISTOFED_TILES": "/t",
        "HISTOFED_CONFIG": "/c",
        "HISTOFED_FAILPOINTS": "x",
        "HISTOFED_DEMO_PORT": "1",
        "HISTOFED_LISTEN_PORT_8443_TCP_ADDR": "10.0.0.1",  # what Kubernetes sets for a service histofed-listen
        "HOME": "/",
    }
    assert read(Agent, file, environ).sources == read(Agent, file).sources


# -- where a value comes from --------------------------------------------------------------------------------------------


def test_every_value_is_explained(file: Path) -> None:
    loaded = read(Agent, file, {"HISTOFED_LISTEN__PORT": "2"}, trainer__device="cpu")
    told = {setting.key: (setting.value, setting.source) for setting in explain(loaded)}
    assert told["state"] == ('"/srv/histofed"', f"{file}:2")
    assert told["listen.grpc"] == ('"10.0.0.1:8443"', f"{file}:5")
    assert told["listen.port"] == ("2", "environment HISTOFED_LISTEN__PORT")
    assert told["trainer.device"] == ('"cpu"', "flag --trainer-device")
    assert told["trainer.threads"] == ("0", "default")
    assert told["site"] == ("not set", "default")
    assert list(told) == sorted(told)


def test_a_daemon_reads_its_own_folder_of_conf_d_and_no_other(file: Path) -> None:
    for name, text in (("all", "site = 'all'"), ("agent/one", "site = 'own'"), ("aggregator/one", "federation = 'f'")):
        more = file.parent / "conf.d" / f"{name}.toml"
        more.parent.mkdir(parents=True, exist_ok=True)
        more.write_text(text)
    assert load(Agent, name="agent", path=file, flags={}, environ={}).config.site == "own"


@pytest.mark.parametrize("folder", ["conf.d", "conf.d/agent"])
def test_what_is_in_a_folder_that_cannot_be_read_is_not_left_out(
    file: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "conf.d" / "agent").mkdir(parents=True)
    (file.parent / folder / "one.toml").write_text("site = 'own'")
    hide(monkeypatch, file.parent / folder)
    with pytest.raises(ConfigError, match=rf"{folder}: cannot be read \(Too many open files\)"):
        load(Agent, name="agent", path=file, flags={}, environ={})


def test_a_reload_names_what_changed(file: Path) -> None:
    before = read(Agent, file)
    file.write_text(file.read_text().replace("port = 1", "port = 2") + "\n[trainer]\nthreads = 4\n")
    after = read(Agent, file)
    assert changed(before, before) == ()
    assert changed(before, after) == ("listen.port", "trainer.device", "trainer.threads")


# -- mistakes ------------------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_named_with_line_and_nearest_key(file: Path) -> None:
    file.write_text('[listen]\n\ngrcp = "x"\n')
    assert refused(Agent, file) == f"{file}:3: there is no key 'listen.grcp'; did you mean 'grpc'?"


def test_an_unknown_key_without_a_neighbour_lists_the_known_ones(file: Path) -> None:
    file.write_text("[listen]\nzzz = 1\n")
    assert refused(Agent, file) == f"{file}:2: there is no key 'listen.zzz'; known here: grpc, names, port"


def test_an_unknown_table_is_named(file: Path) -> None:
    file.write_text("\n[trianer]\nthreads = 1\n")
    assert refused(Agent, file) == f"{file}:2: there is no key 'trianer'; did you mean 'trainer'?"


def test_a_mistake_in_conf_d_names_that_file(file: Path) -> None:
    (file.parent / "conf.d").mkdir()
    extra = file.parent / "conf.d" / "10.toml"
    extra.write_text("stat = 1\n")
    assert refused(Agent, file).startswith(f"{extra}:1: there is no key 'stat'; did you mean 'state'?")


def test_a_bad_value_is_named_with_what_is_expected(file: Path) -> None:
    file.write_text("[listen]\nport = 70000\n")
    message = f"{file}:2: listen.port = 70000 is not allowed: input should be less than or equal to 65535"
    assert refused(Agent, file) == message


def test_the_source_that_won_is_blamed(file: Path) -> None:
    told = refused(Agent, file, {"HISTOFED_LISTEN__PORT": "many"})
    assert told.startswith(
        'environment HISTOFED_LISTEN__PORT: listen.port = "many" is not allowed: input should be a valid integer'
    )
    assert refused(Agent, file, listen__port="many").startswith("flag --listen-port: listen.port")


def test_a_bad_element_of_an_array_of_tables_is_found(file: Path) -> None:
    file.write_text("[[sites]]\nthreads = 1\n[[sites]]\ndevice = 'cpu'\nthreads = 'x'\n")
    assert refused(Agent, file).startswith(f'{file}:5: sites.1.threads = "x" is not allowed')


def test_an_unknown_key_in_an_array_of_tables_is_an_error(file: Path) -> None:
    file.write_text("[[sites]]\nthreds = 1\n")
    assert refused(Agent, file).startswith(f"{file}:2: sites.0.threds = 1 is not allowed: extra inputs are not permitted")


def test_several_bad_values_are_told_together(file: Path) -> None:
    file.write_text("state = 1\nsite = 2\n[listen]\nport = 'x'\ngrpc = 5\n")
    told = refused(Agent, file)
    assert told.count("is not allowed") == 3
    assert told.endswith("and 1 more")


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = 1\nb = \n", 2), ("[listen\n", 1), ('a = "open\n', 1), ("a = 1\na = 2\n", 2), ("x = [1,\n2\n", 2)],
)
def test_broken_toml_is_named_with_its_line(file: Path, text: str, line: int) -> None:
    file.write_text(text)
    told = refused(Agent, file)
    assert told.startswith(f"{file}:{line}: this is not TOML: ")
    assert "(at" not in told


def test_a_file_that_is_not_text_is_named(file: Path) -> None:
    file.write_bytes(b"a = 1\n# \xff\n")
    assert refused(Agent, file) == f"{file}:2: is not UTF-8 text; save the file as UTF-8"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refused(Agent, tmp_path / "agent.toml")


def test_a_misspelt_variable_in_a_known_section_is_an_error() -> None:
    told = refused(Agent, None, {"HISTOFED_LISTEN__GRCP": "x"})
    assert told == "environment HISTOFED_LISTEN__GRCP: there is no such setting; did you mean HISTOFED_LISTEN__GRPC?"
    assert "known here: grpc, names, port" in refused(Agent, None, {"HISTOFED_LISTEN__ZZZ": "x"})


@pytest.mark.parametrize(("name", "meant"), [("HISTOFED_LISTN__GRPC", "LISTEN"), ("HISTOFED_TRAINERS", "TRAINER")])
def test_a_variable_that_is_one_slip_from_a_setting_is_an_error(name: str, meant: str) -> None:
    assert refused(Agent, None, {name: "x"}).endswith(f"there is no such setting; did you mean HISTOFED_{meant}?")


def test_a_variable_that_is_not_json_where_a_list_is_expected_is_an_error() -> None:
    assert "is written as JSON" in refused(Agent, None, {"HISTOFED_LISTEN__NAMES": "a,b"})


def test_a_misspelt_flag_is_an_error() -> None:
    assert refused(Agent, None, listen__prot=1) == "flag --listen-prot: there is no key 'listen.prot'; did you mean 'port'?"


def test_a_model_that_reads_the_environment_by_itself_is_refused() -> None:
    class Reader(BaseSettings):
        pass

    with pytest.raises(TypeError, match="plain pydantic model"):
        read(Reader, None)


# -- the operator's configuration, without pydantic ----------------------------------------------------------------------


def test_a_dataclass_is_read_from_the_same_sources(tmp_path: Path) -> None:
    path = tmp_path / "operator.toml"
    path.write_text('aggregator = "a:1"\nseconds = 5\nnames = ["x"]\n[tls]\nca = "/ca"\n')
    environ = {"HISTOFED_TLS__STRICT": "false", "HISTOFED_TRIES": "7", "HISTOFED_SITE": "42"}
    loaded = read(Operator, path, environ, aggregator="b:2")
    assert loaded.config == Operator("b:2", Tls(Path("/ca"), False), 5.0, 7, ("x",), "42")
    told = {setting.key: (setting.value, setting.source) for setting in explain(loaded)}
    assert told["tls.ca"] == ('"/ca"', f"{path}:5")
    assert told["tls.strict"] == ("false", "environment HISTOFED_TLS__STRICT")
    assert told["aggregator"] == ('"b:2"', "flag --aggregator")


def test_a_dataclass_needs_its_keys() -> None:
    assert refused(Operator, None) == "the configuration of agent: 'aggregator' is missing; set it"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("aggregator = 1", "a text in quotes is expected"),
        ("tries = 'x'", "a whole number is expected"),
        ("tries = true", "a whole number is expected"),
        ("seconds = 'x'", "a number is expected"),
        ("tls.strict = 1", "true or false is expected"),
        ("tls.ca = 1", "a path in quotes is expected"),
        ("names = [1]", "a list of texts is expected"),
        ("tls = 1", "a table is expected"),
    ],
)
def test_a_dataclass_refuses_what_does_not_fit(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "operator.toml"
    path.write_text(f"{line}\n")
    told = refused(Operator, path, None, **({} if line.startswith("aggregator") else {"aggregator": "a:1"}))
    assert told.startswith(f"{path}:1: ")
    assert told.endswith(f"is not allowed: {expected}")


def test_a_dataclass_refuses_bad_variables(tmp_path: Path) -> None:
    told = refused(Operator, None, {"HISTOFED_TRIES": "many"}, aggregator="a:1")
    assert told == 'environment HISTOFED_TRIES: tries = "many" is not allowed: a whole number is expected'
    assert "HISTOFED_TLS__STRICT?" in refused(Operator, None, {"HISTOFED_TLS__STRIKT": "1"}, aggregator="a:1")


def test_the_operators_configuration_does_not_import_pydantic() -> None:
    code = (
        "import sys; from dataclasses import dataclass; from histofed.base.config import load\n"
        "@dataclass(frozen=True)\nclass Tiny:\n    aggregator: str = 'a'\n"
        "load(Tiny, name='operator', path=None, flags={}, environ={})\n"
        "sys.exit('pydantic' in sys.modules or 'asyncio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
