"""Print the webhooks that arrive. SECRET=whsec_... python webhook_receiver.py PORT"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

SEEN = set()  # ids of processed messages; store them with the effects in production


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            message = Webhook(os.environ["SECRET"]).verify(body, dict(self.headers))
        except WebhookVerificationError:
            return self.answer(401)
        if self.headers["webhook-id"] not in SEEN:  # delivery is at least once
            SEEN.add(self.headers["webhook-id"])
            print(message["type"], json.dumps(message["data"]), flush=True)
        return self.answer(204)  # any 2xx acknowledges the message

    def answer(self, status):
        self.send_response(status)
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
