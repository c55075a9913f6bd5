//! The service end to end: a real server on free ports, asked over HTTP and
//! gRPC, with a stub in place of the model's arithmetic.

mod access;
mod bad_clients;
mod bad_input;
mod bodies;
mod bounds;
mod bytes;
mod common;
mod dialect_errors;
mod dialect_shapes;
mod dialects;
mod explain;
mod faults;
mod grpc;
mod grpc_refusals;
mod http;
mod large;
mod overload;
mod pages;
mod process;
mod shutdown;
mod slow_clients;
mod tei_grpc;
mod traces;
