"""The ops and the base on peft that all methods of the Hadamard family share. Knows no method by name."""
