"""A bare grpc.aio server with one method that takes nothing and returns nothing: what an RPC costs by itself."""

from __future__ import annotations

import asyncio
import sys

import grpc

SERVICE, METHOD = "bench.Empty", "Call"


async def _answer(request: bytes, context: object) -> bytes:
    return b""


async def serve(port: int) -> None:
    server = grpc.aio.server()
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
