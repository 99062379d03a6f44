//! HTTP and CLI on the real binary.
