//! Lets aya read and write the shared types as map keys and values.

use crate::{
    Backend, BackendKey, Budget, Config, Conn, Endpoint, Event, FlowKey, Pending, Pod, PodState, ProbePort,
    SockState, Verdict, VerdictKey,
};

macro_rules! pods {
    ($($name:ty),*) => {
        $(
            // SAFETY: repr(C), made of integers and arrays of them alone; every bit pattern is a value, and there is no
            // implicit padding (sizes are asserted beside the types).
            unsafe impl aya::Pod for $name {}
        )*
    };
}

pods!(
    Backend, BackendKey, Budget, Config, Conn, Endpoint, Event, FlowKey, Pending, Pod, PodState, ProbePort,
    SockState, Verdict, VerdictKey
);
