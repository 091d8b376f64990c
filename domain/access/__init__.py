"""Events and records of API keys, sign-ins and erasures of owners."""
