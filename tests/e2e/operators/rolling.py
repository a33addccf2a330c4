"""An application: answers each HTTP request with a transaction on its pool, and ends in order on SIGTERM."""

import http.server
import os
import signal
import threading

from psycopg_pool import ConnectionPool

POOL = ConnectionPool(os.environ["DATABASE_URL"], min_size=3, max_size=3, timeout=120)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            with POOL.connection() as connection:
                connection.execute("UPDATE t SET id = id WHERE id = 1")
                answer = connection.execute("SELECT session_user FROM t LIMIT 1").fetchone()[0]
            status = 200
        except Exception as error:
            status, answer = 500, repr(error)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64


POOL.wait(120)
with Server(("127.0.0.1", 0), Handler) as server:
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("serves", server.server_port, flush=True)
    server.serve_forever(poll_interval=0.05)
POOL.close()
