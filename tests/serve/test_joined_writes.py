"""An answer's head and body leave together, and nothing stays behind."""

import asyncio

import uvloop

from serve.joined_writes import JoinedWrites


def received(send) -> list[bytes]:
    """What a client reads, one entry a segment, of what `send` does with the transport."""

    async def talk():
        done = asyncio.get_running_loop().create_future()
        closed = asyncio.Event()

        class Server(asyncio.Protocol):
            def connection_made(self, transport):
                joined = JoinedWrites(transport, asyncio.get_running_loop())
                done.set_result(asyncio.ensure_future(send(joined)))

        class Client(asyncio.Protocol):
            def data_received(self, data):
                segments.append(data)

            def connection_lost(self, error):
                closed.set()

        loop, segments = asyncio.get_running_loop(), []
        server = await loop.create_server(Server, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client, _ = await loop.create_connection(Client, "127.0.0.1", port)
        await (await done)
        await closed.wait()
        server.close()
        client.close()
        return segments

    return uvloop.run(talk())


def test_two_writes_of_one_turn_are_one_segment():
    async def answer(transport):
        transport.write(b"head ")
        transport.write(b"body")
        transport.close()

    assert received(answer) == [b"head body"]


def test_a_write_alone_is_sent_without_another():
    async def answer(transport):
        transport.write(b"head ")
        assert transport.get_write_buffer_size() == 5
        await asyncio.sleep(0.05)
        assert transport.get_write_buffer_size() == 0
        transport.write(b"body")
        await asyncio.sleep(0.05)
        transport.close()

    assert received(answer) == [b"head ", b"body"]


def test_closing_sends_what_is_held():
    async def answer(transport):
        transport.write(b"head only")
        transport.close()
        assert transport.is_closing()

    assert received(answer) == [b"head only"]


def test_many_writes_keep_their_order():
    async def answer(transport):
        for number in range(101):
            transport.write(b"%d " % number)
            if number % 10 == 0:
                await asyncio.sleep(0)
        transport.close()

    assert b"".join(received(answer)) == b"".join(b"%d " % number for number in range(101))


def test_what_is_held_is_dropped_with_an_aborted_connection():
    async def answer(transport):
        transport.write(b"head")
        transport.abort()
        await asyncio.sleep(0.02)

    assert received(answer) == []
