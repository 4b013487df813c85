//! How much a hit allocates: a program of its own, since counting slows every allocation.

use larder_bench::hit::{self, CALLS};

fn main() {
    println!("| a hit in memory, 1 KiB | allocations | bytes |");
    println!("|---|---:|---:|");
    for (name, mut case) in hit::cases() {
        let requests = hit::requests();
        let counted = allocation_counter::measure(|| case(requests));
        let each = |total: u64| total as f64 / CALLS as f64;
        println!("| {name} | {:.1} | {:.0} |", each(counted.count_total), each(counted.bytes_total));
    }
}
