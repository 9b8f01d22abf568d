//! The program as its users meet it: output, exit codes, interruption, bad input.
