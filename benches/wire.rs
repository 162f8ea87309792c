//! What the codec costs: the headers of a data request, the search for zeros in a body, compression,
//! the hello.

use std::hint::black_box;

use blockferry::volume::Priority;
use blockferry::wire::codec::{self, Codec, Compression};
use blockferry::wire::control::{self, ClientMessage, FRAME_PREFIX_BYTES, Hello};
use blockferry::wire::data::{Operation, ReplyHeader, RequestHeader};
use blockferry::wire::segment;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const CHUNK_BYTES: usize = 256 << 10;

fn headers(criterion: &mut Criterion) {
    let request = RequestHeader {
        operation: Operation::Read,
        priority: Priority::Demand,
        offset: 1 << 30,
        len: 4096,
        reply: Compression::Off,
    };
    let reply = ReplyHeader::Done { count: 4096 };
    let (request_bytes, reply_bytes) = (request.encode(), reply.encode());
    let mut group = criterion.benchmark_group("data header");
    group.bench_function("encode request", |bencher| {
        bencher.iter(|| black_box(&request).encode());
    });
    group.bench_function("decode request", |bencher| {
        bencher.iter(|| RequestHeader::decode(black_box(&request_bytes)));
    });
    group.bench_function("encode reply", |bencher| {
        bencher.iter(|| black_box(&reply).encode());
    });
    group.bench_function("decode reply", |bencher| {
        bencher.iter(|| ReplyHeader::decode(black_box(&reply_bytes), &request));
    });
    group.finish();
}

fn segments(criterion: &mut Criterion) {
    let bodies = [
        ("data", vec![0xA5u8; CHUNK_BYTES]),
        ("zeros", vec![0u8; CHUNK_BYTES]),
        ("every other block zero", every_other_block_zero()),
    ];
    let mut group = criterion.benchmark_group("runs of a 256 KiB body");
    group.throughput(Throughput::Bytes(CHUNK_BYTES as u64));
    for (name, body) in &bodies {
        group.bench_function(*name, |bencher| {
            bencher.iter(|| segment::runs(black_box(body)).count());
        });
    }
    group.finish();
}

fn every_other_block_zero() -> Vec<u8> {
    let mut body = vec![0u8; CHUNK_BYTES];
    for block in body.chunks_mut(4096).step_by(2) {
        block.fill(0xA5);
    }
    body
}

fn units(criterion: &mut Criterion) {
    let text: Vec<u8> = (0..codec::UNIT_BYTES_MAX / 16)
        .flat_map(|line| format!("line {line:>10}\n").into_bytes())
        .collect();
    let mut group = criterion.benchmark_group("a unit of 128 KiB of text");
    group.throughput(Throughput::Bytes(text.len() as u64));
    for codec in [Codec::Lz4, Codec::Zstd] {
        let stored = codec::compress(codec, &text).expect("text gets shorter");
        let mut place = vec![0; text.len()];
        group.bench_function(format!("compress {codec:?}"), |bencher| {
            bencher.iter(|| codec::compress(codec, black_box(&text)));
        });
        group.bench_function(format!("decompress {codec:?}"), |bencher| {
            bencher.iter(|| codec::decompress(codec, black_box(&stored), &mut place));
        });
    }
    group.finish();
}

fn hello(criterion: &mut Criterion) {
    let hello = ClientMessage::Hello(Hello {
        features: control::FEATURES,
        volume: "disk".into(),
        secret: None,
        client_id: [7; 16],
        client_name: "client.example.net".into(),
        session: 1,
        writable: true,
        takeover: false,
        known_epoch: 0,
        known_identity: None,
        managed: None,
    });
    let frame = control::encode(&hello).expect("a hello within its limits");
    let mut group = criterion.benchmark_group("hello");
    group.bench_function("encode", |bencher| {
        bencher.iter(|| control::encode(black_box(&hello)));
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| control::decode::<ClientMessage>(black_box(&frame[FRAME_PREFIX_BYTES..])));
    });
    group.finish();
}

criterion_group!(benches, headers, segments, units, hello);
criterion_main!(benches);
