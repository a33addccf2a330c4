//! On a real Kubernetes control plane: `make test-kubernetes`, or `cargo test --test kubernetes`.
//!
//! etcd, kube-apiserver and kube-controller-manager are real (`control_plane`), and so are OpenBao and PostgreSQL. No
//! kubelet and no kube-proxy are there: `node` stands for them, and runs the containers of pglease's image as their
//! pods say. Each test has a namespace of its own.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what fails here fails the test"
)]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the other tests use other parts of it")]
mod support;
#[path = "../e2e/steps.rs"]
#[expect(dead_code, reason = "the other tests use other parts of it")]
mod steps;

mod api;
mod chart;
mod control_plane;
mod node;
mod patience;
mod site;

mod bare;
mod certificate;
mod deploy;
mod limits;
mod logins;
mod manifests;
mod outage;
mod readme;
mod rights;
mod workloads;
