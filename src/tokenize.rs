//! The checkpoint's tokenizer: plain text in, ids out; never a control token from user text.
