//! Ranks in threads of one process, over loopback connections.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use soda_distributed::{Alone, DistributedError, Item, Launch, Reduce, Tcp, connect};

const PATIENCE: Duration = Duration::from_secs(20);

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn join(rank: usize, world: usize, port: u16, patience: Duration) -> Result<Tcp, DistributedError> {
    connect(&Launch::local(rank, world, port, "token"), patience, &mut |_| ())
}

/// Runs `work` on each of `world` ranks. Returns what they return, in order.
fn ranks<T: Send>(world: usize, patience: Duration, work: impl Fn(Tcp) -> T + Sync) -> Vec<T> {
    let port = free_port();
    thread::scope(|scope| {
        let start = |rank| {
            let work = &work;
            scope.spawn(move || work(join(rank, world, port, patience).unwrap()))
        };
        let all: Vec<_> = (0..world).map(start).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Values of a rank whose sum depends on the order, also in f64.
fn values(rank: usize, count: usize) -> Vec<f32> {
    let value = |i: usize| match i % 3 {
        0 => [1e20, -1e20, 1.0, i as f32][rank],
        _ => ((i * 7 + rank * 31) as f32).sin() * 10f32.powi((rank as i32 * 5) % 9),
    };
    (0..count).map(value).collect()
}

#[test]
fn sums_are_those_in_the_order_of_the_ranks_whoever_is_first() {
    for count in [0, 1, 1000, 700_000] {
        let expected: Vec<f32> = (0..count)
            .map(|i| (0..4).map(|rank| f64::from(values(rank, i + 1)[i])).sum::<f64>())
            .map(|sum| sum as f32)
            .take(1000)
            .collect();
        for round in 0..3_u64 {
            let sums = ranks(4, PATIENCE, |ranks| {
                let late = (ranks.rank() as u64 * (round + 1)) % 4;
                thread::sleep(Duration::from_millis(20 * late));
                let mut sum = values(ranks.rank(), count);
                ranks.sum(&mut sum).unwrap();
                sum
            });
            for sum in &sums {
                assert_eq!(sum.len(), count);
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                assert!(sum.iter().zip(&sums[0]).all(same), "ranks have other bits");
                assert!(sum.iter().zip(&expected).all(same), "other sums than in order");
            }
            if count > 1000 {
                break;
            }
        }
    }
}

#[test]
fn a_sum_keeps_nan_and_infinity() {
    let sums = ranks(2, PATIENCE, |ranks| {
        let mut sum = [[f32::NAN, f32::INFINITY], [1.0, 2.0]][ranks.rank()];
        ranks.sum(&mut sum).unwrap();
        sum
    });
    assert!(sums.iter().all(|sum| sum[0].is_nan() && sum[1] == f32::INFINITY));
}

#[test]
fn rank_0_gives_its_bytes_to_all() {
    let payload: Vec<u8> = (0..3_000_000).map(|i| (i % 251) as u8).collect();
    let received = ranks(3, PATIENCE, |ranks| {
        let own = if ranks.rank() == 0 { payload.clone() } else { Vec::new() };
        let first = ranks.broadcast(own, 1 << 22).unwrap();
        let empty = ranks.broadcast(Vec::new(), 0).unwrap();
        assert!(empty.is_empty());
        // More than the limit.
        let own = if ranks.rank() == 0 { vec![1; 11] } else { Vec::new() };
        let rank = ranks.rank();
        assert_eq!(ranks.broadcast(own, 10).is_err(), rank > 0);
        first
    });
    assert!(received.iter().all(|bytes| *bytes == payload));
}

/// Rank 0 gets the bytes of all in order. A rank that is late and says that it works on is waited for, also
/// by a rank whose bytes are more than a connection holds.
#[test]
fn rank_0_gathers_the_bytes_of_all_in_order() {
    let payload = |rank: usize| vec![rank as u8 + 1; [0, 3, 20_000_000][rank]];
    let gathered = ranks(3, Duration::from_secs(2), |ranks| {
        if ranks.rank() == 1 {
            for _ in 0..60 {
                thread::sleep(Duration::from_millis(100));
                ranks.alive();
            }
        }
        let first = ranks.gather(payload(ranks.rank()), 20_000_000).unwrap();
        let empty = ranks.gather(Vec::new(), 0).unwrap();
        assert!(empty.iter().all(Vec::is_empty));
        first
    });
    assert_eq!(gathered[0], [payload(0), payload(1), payload(2)]);
    assert!(gathered[1].is_empty() && gathered[2].is_empty());
    assert_eq!(Alone.gather(vec![7], 0).unwrap(), [[7]]);
}

#[test]
fn bytes_that_are_too_long_or_refused_end_all_with_the_name_of_their_rank() {
    let errors = ranks(3, PATIENCE, |ranks| {
        let bytes = vec![0; 10 + ranks.rank()];
        let error = ranks.gather(bytes, 11).err().or_else(|| ranks.sum(&mut [1.0]).err());
        error.unwrap().to_string()
    });
    for error in errors {
        assert!(error.starts_with("rank 2 on ") && error.contains("unexpected"), "{error}");
    }
    let errors = ranks(3, PATIENCE, |ranks| {
        ranks.gather(vec![1], 1).unwrap();
        let error = match ranks.rank() {
            0 => ranks.refuse(1, "samples"),
            _ => ranks.sum(&mut [1.0]).unwrap_err(),
        };
        assert_eq!(ranks.sum(&mut [1.0]).unwrap_err().to_string(), error.to_string());
        error.to_string()
    });
    for error in errors {
        assert!(
            error.starts_with("rank 1 on ") && error.contains(" sent samples that "),
            "{error}"
        );
    }
}

#[test]
fn a_rank_that_goes_before_a_gather_is_named_on_every_rank() {
    for lost in 0..3 {
        let errors = ranks(3, PATIENCE, |ranks| {
            if ranks.rank() == lost {
                return None;
            }
            let error = (0..3).find_map(|_| ranks.gather(vec![1; 100_000], 1 << 20).err()).unwrap();
            Some(error.to_string())
        });
        for error in errors.iter().flatten() {
            assert!(error.starts_with(&format!("rank {lost} on ")), "{lost}: {error}");
            assert!(error.contains("has gone"), "{error}");
        }
    }
}

#[test]
fn a_rank_that_differs_is_named_on_every_rank() {
    let items = |rank: usize| {
        let batch = if rank == 2 { "4" } else { "2" };
        vec![
            Item::new("the setting `seed`", "1"),
            Item::new("the setting `batch_size`; give all ranks the same", batch),
            Item::new("the training data", "abc"),
        ]
    };
    let errors = ranks(4, PATIENCE, |ranks| {
        ranks.agree(&items(0)).unwrap();
        let first = ranks.agree(&items(ranks.rank())).unwrap_err().to_string();
        // Nothing works afterwards.
        assert_eq!(ranks.sum(&mut [1.0]).unwrap_err().to_string(), first);
        first
    });
    for error in errors {
        assert!(error.starts_with("rank 2 on "), "{error}");
        assert!(
            error.contains("differs from rank 0 in the setting `batch_size`; give all"),
            "{error}"
        );
    }
}

#[test]
fn a_rank_that_goes_is_named_on_every_rank_at_once() {
    for lost in 0..3 {
        let started = Instant::now();
        let errors = ranks(3, PATIENCE, |ranks| {
            ranks.sum(&mut [1.0]).unwrap();
            if ranks.rank() == lost {
                return None;
            }
            let error = (0..3).find_map(|_| ranks.sum(&mut [1.0]).err()).unwrap();
            Some(error.to_string())
        });
        for error in errors.iter().flatten() {
            assert!(error.starts_with(&format!("rank {lost} on ")), "{lost}: {error}");
            assert!(error.contains("has gone"), "{error}");
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}

#[test]
fn a_rank_that_hangs_is_named_within_the_time() {
    let patience = Duration::from_secs(2);
    let errors = ranks(3, patience, |ranks| {
        ranks.sum(&mut [1.0]).unwrap();
        if ranks.rank() == 1 {
            thread::sleep(Duration::from_secs(5));
            return String::new();
        }
        ranks.sum(&mut [1.0]).unwrap_err().to_string()
    });
    for error in [&errors[0], &errors[2]] {
        assert!(error.starts_with("rank 1 on "), "{error}");
        assert!(error.contains("has not answered for 2 s"), "{error}");
    }
}

/// A rank that is slow and says so is waited for, by rank 0 and by the others.
#[test]
fn a_rank_that_works_on_is_waited_for() {
    for slow in [0, 1] {
        ranks(3, Duration::from_secs(2), |ranks| {
            if ranks.rank() == slow {
                for _ in 0..35 {
                    thread::sleep(Duration::from_millis(100));
                    ranks.alive();
                }
            }
            let mut sum = [1.0];
            ranks.sum(&mut sum).unwrap();
            assert_eq!(sum, [3.0]);
        });
    }
}

#[test]
fn the_sentence_of_a_rank_that_fails_reaches_every_rank() {
    for failed in 0..3 {
        let errors = ranks(3, PATIENCE, |ranks| {
            if ranks.rank() == failed {
                ranks.end("cannot read a.png");
                return None;
            }
            Some(ranks.sum(&mut [1.0]).unwrap_err().to_string())
        });
        for error in errors.into_iter().flatten() {
            assert!(error.starts_with(&format!("rank {failed} on ")), "{error}");
            assert!(error.ends_with(": cannot read a.png"), "{error}");
        }
    }
}

#[test]
fn ranks_that_do_other_things_end() {
    let errors = ranks(2, Duration::from_secs(2), |ranks| match ranks.rank() {
        0 => ranks.sum(&mut [1.0; 3]).unwrap_err().to_string(),
        _ => ranks.agree(&[]).unwrap_err().to_string(),
    });
    assert!(errors[0].contains("rank 1 on ") && errors[0].contains("unexpected"), "{}", errors[0]);
    assert_eq!(errors[0], errors[1]);
    let errors = ranks(2, Duration::from_secs(2), |ranks| {
        ranks.sum(&mut vec![1.0; 3 + ranks.rank()]).unwrap_err().to_string()
    });
    assert_eq!(errors[0], errors[1]);
}

#[test]
fn processes_of_other_jobs_are_refused_and_the_ranks_still_meet() {
    let port = free_port();
    thread::scope(|scope| {
        let root = scope.spawn(|| join(0, 2, port, PATIENCE));
        let reach = || {
            (0..100)
                .find_map(|_| {
                    thread::sleep(Duration::from_millis(30));
                    TcpStream::connect(("127.0.0.1", port)).ok()
                })
                .unwrap()
        };
        // One that says nothing, one that speaks HTTP, one that sends a length of 2^63.
        let silent = reach();
        reach().write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        reach().write_all(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 7]).unwrap();
        let other = Launch { token: "another".to_owned(), ..Launch::local(1, 2, port, "") };
        let error = connect(&other, PATIENCE, &mut |_| ()).err().unwrap().to_string();
        assert!(error.contains("another job"), "{error}");
        let rank = join(1, 2, port, PATIENCE).unwrap();
        let root = root.join().unwrap().unwrap();
        let mut sum = [1.0];
        thread::scope(|scope| {
            scope.spawn(|| rank.sum(&mut [2.0]).unwrap());
            root.sum(&mut sum).unwrap();
        });
        assert_eq!(sum, [3.0]);
        drop(silent);
    });
}

#[test]
fn ranks_that_do_not_fit_end_with_one_sentence() {
    for (second, expected) in [
        (Launch::local(1, 3, 0, "token"), "WORLD_SIZE"),
        (Launch::local(0, 2, 0, "token"), "rank 0 cannot listen"),
    ] {
        let port = free_port();
        let second = Launch { port, ..second };
        thread::scope(|scope| {
            let root = scope.spawn(|| join(0, 2, port, Duration::from_secs(3)));
            thread::sleep(Duration::from_millis(300));
            let error = connect(&second, PATIENCE, &mut |_| ()).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
            let of_root = root.join().unwrap().err().unwrap().to_string();
            if expected == "WORLD_SIZE" {
                assert_eq!(of_root, error);
            } else {
                assert!(of_root.contains("rank 1 did not connect"), "{of_root}");
            }
        });
    }
}

#[test]
fn an_address_that_leads_nowhere_is_named_within_the_time() {
    let started = Instant::now();
    let patience = Duration::from_secs(1);
    let port = free_port();
    let error = join(1, 2, port, patience).err().unwrap().to_string();
    assert!(
        error.contains("rank 1 on ") && error.contains(&format!("127.0.0.1:{port}")),
        "{error}"
    );
    let nowhere = |rank, address: &str| {
        let launch = Launch { address: address.to_owned(), ..Launch::local(rank, 2, port, "") };
        connect(&launch, patience, &mut |_| ()).err().unwrap().to_string()
    };
    for rank in [0, 1] {
        let error = nowhere(rank, "no-such-host.invalid");
        assert!(error.contains("no-such-host.invalid"), "{error}");
    }
    // An address of another machine (TEST-NET-1).
    let error = nowhere(0, "192.0.2.1");
    assert!(error.contains("must be an address of the machine of rank 0"), "{error}");
    let used = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let error = join(0, 2, port, patience).err().unwrap().to_string();
    assert!(error.contains("give another MASTER_PORT"), "{error}");
    drop(used);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

/// A peer that sends garbage in the middle of a training is named, and takes no memory.
#[test]
fn garbage_in_the_middle_ends_the_training() {
    let port = free_port();
    thread::scope(|scope| {
        let root = scope.spawn(|| join(0, 2, port, Duration::from_secs(3)).unwrap());
        // The bytes of a true hello, through a listener in between.
        let between = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let door = between.local_addr().unwrap().port();
        scope.spawn(move || join(1, 2, door, Duration::from_secs(3)));
        let (mut rank, _) = between.accept().unwrap();
        let mut hello = [0; 512];
        let length = rank.read(&mut hello).unwrap();
        let mut forged = (0..100)
            .find_map(|_| {
                thread::sleep(Duration::from_millis(30));
                TcpStream::connect(("127.0.0.1", port)).ok()
            })
            .unwrap();
        forged.write_all(&hello[..length]).unwrap();
        let root = root.join().unwrap();
        forged.write_all(&[5, 1, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 127]).unwrap();
        let error = root.sum(&mut [1.0]).unwrap_err().to_string();
        assert!(error.contains("rank 1 on ") && error.contains("unexpected"), "{error}");
    });
}

#[test]
fn one_process_is_its_own_sum() {
    let mut values = [1.0, f32::NAN];
    Alone.sum(&mut values).unwrap();
    assert_eq!(values[0], 1.0);
    assert_eq!(Alone.broadcast(vec![1, 2], 0).unwrap(), [1, 2]);
    assert_eq!((Alone.rank(), Alone.world()), (0, 1));
    Alone.agree(&[]).unwrap();
}
