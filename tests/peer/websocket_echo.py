"""A WebSocket echo by the `websockets` package: prints the port that it listens on. Text and binary messages come back."""

import asyncio

from websockets.asyncio.server import serve


async def echo(connection):
    async for message in connection:
        await connection.send(message)


async def main():
    async with serve(echo, "127.0.0.1", 0, max_size=64 << 20, max_queue=64) as server:
        print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
        await server.wait_closed()


asyncio.run(main())
