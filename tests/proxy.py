"""A proxy between a client and a server on this machine, that cuts the line; no pytest in here."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from urllib.parse import urlsplit


class Proxy:
    """On `uri`, in front of `server`. `cut`: nobody gets through. `loses`: the share of connections whose answer is
    kept back, although the server has done what it was asked; which ones, `seed` decides."""

    def __init__(self, server: str, seed: int = 0) -> None:
        parts = urlsplit(server)
        self._server = (str(parts.hostname), int(parts.port or 0))
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = False
        self.loses = 0.0
        self.lost = 0
        self.refused = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._server) as server:
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
            while answer := server.recv(65536):
                if self.cut or self._random.random() < self.loses:
                    self.lost += not self.cut
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while asked := client.recv(65536):
                if self.cut:
                    self.refused += 1
                    break
                server.sendall(asked)
            server.shutdown(socket.SHUT_RDWR)
