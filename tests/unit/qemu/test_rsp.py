"""Packets in, packets out, whatever way the bytes are cut."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestPhysical
from optpolined.qemu import rsp
from optpolined.qemu.errors import StubProtocolError
from optpolined.qemu.quirks import REPLY_BYTES_MAX

BODIES = st.binary(max_size=600).map(lambda body: body.translate(None, b"#$"))


@settings(deadline=None, max_examples=60)
@given(BODIES)
def test_the_checksum_is_the_sum_of_the_bytes(body: bytes) -> None:
    assert rsp.packet(body) == b"$" + body + b"#" + f"{sum(body) % 256:02x}".encode()


def test_the_checksum_of_a_full_packet_is_right() -> None:
    body = b"\xff" * 4095
    assert rsp.packet(body).endswith(f"#{255 * 4095 % 256:02x}".encode())


def test_reads_and_writes_are_as_the_protocol_has_them() -> None:
    address = GuestPhysical(0x1_2345_6789)
    assert rsp.read_packet(address, 0x800) == rsp.packet(b"m123456789,800")
    assert rsp.write_packet(address, b"\xcc\x0f") == rsp.packet(b"M123456789,2:cc0f")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.binary(max_size=3).map(lambda acks: b"+" * len(acks)), BODIES)),
    st.data(),
)
def test_replies_are_the_same_however_the_stream_is_cut(
    parts: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(acks + rsp.packet(body) for acks, body in parts)
    replies, found = rsp.Replies(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        replies.feed(stream[:size])
        stream = stream[size:]
        while (reply := replies.take()) is not None:
            found.append(reply)
    assert found == [body for _, body in parts]
    assert not replies


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_replies_or_a_protocol_error(noise: bytes, skip: bool) -> None:
    replies = rsp.Replies()
    replies.feed(noise)
    with contextlib.suppress(StubProtocolError):
        while replies.take(skip_noise=skip) is not None:
            pass


@settings(deadline=None, max_examples=60)
@given(BODIES, st.data())
def test_no_changed_byte_of_a_packet_goes_unnoticed(body: bytes, data: st.DataObject) -> None:
    stream = bytearray(rsp.packet(body))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != stream[place]))
    replies = rsp.Replies()
    replies.feed(bytes(stream))
    with contextlib.suppress(StubProtocolError):
        assert replies.take() != body or stream[-2:].lower() == rsp.packet(body)[-2:]


def test_a_reply_without_end_is_an_error() -> None:
    replies = rsp.Replies()
    replies.feed(b"$" + b"0" * REPLY_BYTES_MAX)
    with pytest.raises(StubProtocolError, match="more than"):
        replies.take()


def test_data_is_hex_and_nothing_else() -> None:
    assert rsp.data(b"00ffCc") == b"\x00\xff\xcc"
    assert rsp.data(b"") == b""
    for reply in (b"E14", b"0", b"0g", b"00 ff", b"\xff\xff"):
        assert rsp.data(reply) is None
