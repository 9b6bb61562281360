"""The studio: a web page and an HTTP API for one model, started by `dalle studio`. Nothing else imports it."""
