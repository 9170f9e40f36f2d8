"""Tables as strangers send them, understood once and written in the project's form."""
