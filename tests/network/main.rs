//! Pod networks with real packets and real failures. Needs root; each test is a machine of its own: a thread in a
//! network namespace made for it, with a neighbour on its wire, so that nothing of the real host is touched.

mod bandwidth;
mod cni;
mod embedded;
mod machine;
