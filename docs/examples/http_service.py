"""Count words, as a service for `http` steps. SECRET=whsec_... python http_service.py PORT"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.request import Request, urlopen

from standardwebhooks.webhooks import Webhook, WebhookVerificationError


class Service(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            step = Webhook(os.environ["SECRET"]).verify(body, dict(self.headers))["data"]
        except WebhookVerificationError:
            return self.answer(401, {})
        if step["size"] <= 1000:
            return self.answer(200, count(step))
        Thread(target=count_later, args=(step,)).start()
        return self.answer(202, {})  # a large file takes longer: report by callback

    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


def count(step):
    with urlopen(step["content_url"]) as content:  # noqa: S310
        return {"result": {"words": len(content.read().split())}}


def count_later(step):
    for report in ({"progress": {"done": 0, "total": 1}}, count(step)):
        body, headers = json.dumps(report).encode(), {"Content-Type": "application/json"}
        urlopen(Request(step["callback_url"], body, headers)).close()  # noqa: S310


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Service).serve_forever()
