//! Validate, admit, tokenize, submit, collect: the one call every transport makes.
