//! The behaviour suite, on the stores that need no server.
#![cfg(feature = "testing")]

use larder::{
    Deadlines, Guard, MemoryStore, Tiered,
    testing::{Faulty, behaves},
};

#[tokio::test(start_paused = true)]
async fn memory_behaves() {
    behaves(&MemoryStore::default(), tokio::time::advance).await;
}

#[tokio::test(start_paused = true)]
async fn two_tiers_behave() {
    behaves(&Tiered::new(MemoryStore::default(), MemoryStore::default()), tokio::time::advance).await;
}

#[tokio::test(start_paused = true)]
async fn a_guarded_store_behaves() {
    behaves(&Guard::new(Faulty::new(MemoryStore::default()), Deadlines::default()), tokio::time::advance).await;
}
