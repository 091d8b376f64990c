from __future__ import annotations

import pytest

from infrastructure.outbound import new_secret, require_secret, signature_headers

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_" + "b2xk" * 8
ID, TIMESTAMP = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330


def test_a_signature_is_that_of_the_specification() -> None:
    # The example of the reference libraries of Standard Webhooks.
    headers = signature_headers(ID, TIMESTAMP, b'{"test": 2432232314}', SECRET)

    assert headers == {
        "webhook-id": ID,
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_signatures_of_two_secrets_and_non_ascii_text_keep_their_bytes() -> None:
    # Written down from our own HMAC, before the library signed.
    body = '{"path": "R\u00f6mer \u2713 \U0001f4f7.jpg"}'.encode()

    headers = signature_headers(ID, TIMESTAMP, body, SECRET, OLD_SECRET)

    assert headers["webhook-signature"].split(" ") == [
        "v1,4EubdBQdEGjQ6XXxd2KiCvurYu5q40Ub7Mg8+P/7v5g=",
        "v1,RHItej5nJbGloYpqsKnch66qJX8CG3eabnGcVGL2ocA=",
    ]


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_!!", "MfKQ9r8GKYqrTwjU"])
def test_an_invalid_secret_is_refused_without_being_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="must be whsec_ and 24 to 64 bytes in base64") as refused:
        require_secret(secret)
    assert not secret.removeprefix("whsec_") or secret not in str(refused.value)


def test_several_secrets_sign_side_by_side() -> None:
    secrets = [new_secret(), new_secret()]

    alone = [signature_headers("a", 1, b"body", one)["webhook-signature"] for one in secrets]
    together = signature_headers("a", 1, b"body", *secrets)["webhook-signature"]

    assert together == " ".join(alone)
    assert len(set(alone)) == 2
