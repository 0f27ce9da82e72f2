//! Operations on small files, as mdtest does them, by one thread and by several.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Bench, Task, Workload, repeat, together};
use crate::bench::results::Unit;

/// Bytes of a file.
const SIZE: usize = 4096;
/// How long what changes nothing is repeated, by scale: longer than the second for which many file systems believe what they have, so
/// that asking again is part of it.
const REPEAT: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(1500), Duration::from_millis(1500)];
/// How many threads work in each run.
const THREADS: [usize; 2] = [1, 4];

pub(super) struct Small;

/// What a row is called.
fn row(operation: &str, threads: usize) -> String {
    if threads == 1 { operation.to_owned() } else { format!("{operation}, {threads} threads") }
}

/// The directories of the threads.
fn places(place: &Path, threads: usize) -> Vec<PathBuf> {
    (0..threads).map(|thread| place.join(format!("of-{threads}-{thread}"))).collect()
}

/// The same done by a thread in each directory.
fn each<T: Send>(places: &[PathBuf], work: impl Fn(&Path) -> Result<T> + Sync) -> Result<Vec<T>> {
    let work = &work;
    let of = |place: &'_ PathBuf| -> Task<'_, T> {
        let place = place.clone();
        Box::new(move || work(&place))
    };
    together(places.iter().map(of).collect())
}

fn name(file: usize) -> String {
    format!("file-{file:05}")
}

impl Workload for Small {
    fn round(&self, bench: &mut Bench<'_>) -> Result<()> {
        let place = bench.make_place()?;
        for threads in THREADS {
            let places = places(&place, threads);
            let files = bench.inputs.scale.pick(20, 1000, 4000) / threads;
            each(&places, |place| Ok(fs::create_dir(place)?))?;
            let sum = (files * threads) as f64;
            let [quick, usual, full] = REPEAT;
            let length = bench.inputs.scale.pick(quick, usual, full);
            bench.rate(&row("create", threads), Unit::PerSecond, || {
                each(&places, |place| {
                    (0..files).try_for_each(|file| {
                        let mut file = File::create_new(place.join(name(file)))?;
                        file.write_all(&[7; SIZE])?;
                        Ok(crate::process::close(file)?)
                    })
                })?;
                Ok(sum)
            })?;
            let repeated = |work: &(dyn Fn(&Path) -> Result<()> + Sync)| {
                let pass = |place: &Path| {
                    (0..files).try_for_each(|file| work(&place.join(name(file))))?;
                    Ok(files)
                };
                Ok(each(&places, |place| repeat(length, || pass(place)))?.into_iter().sum::<f64>())
            };
            bench.figure(&row("stat", threads), Unit::PerSecond, || {
                repeated(&|path| {
                    ensure!(fs::metadata(path)?.len() == SIZE as u64, "{} has another size", path.display());
                    Ok(())
                })
            })?;
            bench.figure(&row("open, read, close", threads), Unit::PerSecond, || {
                repeated(&|path| {
                    let mut buffer = [0; SIZE];
                    File::open(path)?.read_exact(&mut buffer)?;
                    ensure!(buffer == [7; SIZE], "{} has other contents", path.display());
                    Ok(())
                })
            })?;
            bench.rate(&row("rename", threads), Unit::PerSecond, || {
                each(&places, |place| {
                    (0..files).try_for_each(|file| {
                        Ok(fs::rename(place.join(name(file)), place.join(format!("renamed-{file:05}")))?)
                    })
                })?;
                Ok(sum)
            })?;
        }
        Ok(())
    }

    fn remove(&self, bench: &mut Bench<'_>) -> Result<()> {
        bench.forget()?;
        let place = bench.place(0);
        for threads in THREADS {
            let places = places(&place, threads);
            let files = bench.inputs.scale.pick(20, 1000, 4000) / threads;
            bench.rate(&row("unlink", threads), Unit::PerSecond, || {
                each(&places, |place| {
                    (0..files).try_for_each(|file| Ok(fs::remove_file(place.join(format!("renamed-{file:05}")))?))
                })?;
                Ok((files * threads) as f64)
            })?;
        }
        Ok(())
    }
}
