from __future__ import annotations

import pytest

from infrastructure.outbound.signing import key_of, new_secret, signed


def test_a_signature_is_that_of_the_specification() -> None:
    # The example of the reference libraries of Standard Webhooks.
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'

    headers = signed("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body, key)

    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_!!", "MfKQ9r8GKYqrTwjU"])
def test_a_secret_that_is_none_is_refused_without_being_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="must be whsec_ and 24 to 64 bytes in base64") as refused:
        key_of(secret)
    assert not secret.removeprefix("whsec_") or secret not in str(refused.value)


def test_several_keys_sign_side_by_side() -> None:
    keys = [key_of(new_secret()), key_of(new_secret())]

    alone = [signed("a", 1, b"body", key)["webhook-signature"] for key in keys]
    together = signed("a", 1, b"body", *keys)["webhook-signature"]

    assert together == " ".join(alone)
    assert len(set(alone)) == 2
