"""Each command: from its options to its result."""

import argparse
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from optpolined.api.errors import BadRequestError
from optpolined.api.requests import (
    Answer,
    Ban,
    Explain,
    Freeze,
    ListSites,
    ListStaticCalls,
    Pin,
    Relearn,
    ReleaseStub,
    Request,
    Revert,
    SetStaticCall,
    TakeStub,
    Thaw,
    Unban,
    Unpin,
)
from optpolined.api.status import Status
from optpolined.config import DEFAULT_DIRECTORIES, GuestConfig, load
from optpolined.ctl.client import DaemonClient
from optpolined.session.rescue import rescue

__all__ = ("run",)

_MakeRequest = Callable[[argparse.Namespace], Request]


def run(options: argparse.Namespace) -> Answer | Status:
    """Run the command in ``options``.

    :raise OptpolinedError: it failed; the message says in one line why, and what to do.
    """
    directories = (options.config_dir,) if options.config_dir else DEFAULT_DIRECTORIES
    config = load(options.guest, directories)
    daemon = DaemonClient(options.guest, config)
    match options.command:
        case "status":
            return daemon.status()
        case "top":
            return _top(options, daemon)
        case "rescue":
            return _rescue(config)
        case name:
            return daemon.ask(_request(_REQUESTS[name], options))


def _top(options: argparse.Namespace, daemon: DaemonClient) -> Answer:
    from optpolined.ctl.top import run_top  # noqa: PLC0415 - Textual takes half a second to load

    return run_top(daemon, options.interval, as_json=options.json)


def _rescue(config: GuestConfig) -> Answer:
    return Answer(outcome="done", says=rescue(config))


def _request(make: _MakeRequest, options: argparse.Namespace) -> Request:
    try:
        return make(options)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in details["loc"])
        raise BadRequestError(f"{place}: {details['msg']}") from error


def _sites(options: argparse.Namespace) -> ListSites:
    pattern = options.symbol if options.pattern is None else options.pattern
    return ListSites(
        pattern="*" if pattern is None else pattern,
        states=tuple(options.state),
        order=options.order,
        top=options.top or ListSites.model_fields["top"].default,
    )


def _static_call(options: argparse.Namespace) -> ListStaticCalls | SetStaticCall:
    if options.static_call == "list":
        return ListStaticCalls()
    function = None if options.function == "NULL" else options.function
    return SetStaticCall(key=options.key, function=function)


_REQUESTS: Mapping[str, _MakeRequest] = {
    "sites": _sites,
    "explain": lambda options: Explain(site=options.site),
    "pin": lambda options: Pin(site=options.site, target=options.target),
    "unpin": lambda options: Unpin(site=options.site),
    "ban": lambda options: Ban(what=options.what),
    "unban": lambda options: Unban(what=options.what),
    "relearn": lambda options: Relearn(site=options.site),
    "revert": lambda options: Revert(site=options.site),
    "freeze": lambda _: Freeze(),
    "thaw": lambda _: Thaw(),
    "release-stub": lambda _: ReleaseStub(),
    "take-stub": lambda _: TakeStub(),
    "static-call": _static_call,
}
