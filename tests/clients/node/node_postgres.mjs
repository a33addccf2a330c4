// node-postgres with its own pool.

import { pipeline } from "node:stream/promises";
import { Readable } from "node:stream";
import pg from "pg";
import { from, to } from "pg-copy-streams";
import {
  BIG_ROWS, BIG_VALUE, CLIENT, COPIED, IS_SLEEPING, POOL_SIZE, SLEEP, URL, expect, failure, pause, run,
} from "./contract.mjs";

const pool = new pg.Pool({ connectionString: URL, max: POOL_SIZE, idleTimeoutMillis: 0 });
// A connection that ends while it rests is an event, which ends the process where nobody listens.
pool.on("error", () => {});

const one = await connect();

async function connect() {
  const client = new pg.Client({ connectionString: URL });
  client.on("error", () => {});
  await client.connect();
  return client;
}

const value = async (client, sql) => Object.values((await client.query(sql)).rows[0])[0];

async function query() {
  const sql = "SELECT $1::int + 1 AS number, $2::text AS text, $3::float8 AS half, $4::text AS nothing";
  const { rows } = await one.query(sql, [41, "é€", 0.5, null]);
  expect({ ...rows[0] }, { number: 42, text: "é€", half: 0.5, nothing: null });
}

async function prepared() {
  for (let id = 1; id <= 8; id += 1) {
    const { rows } = await one.query({ name: "by id", text: "SELECT id FROM t WHERE id = $1", values: [id] });
    expect(rows[0].id, id);
  }
  expect(await value(one, "SELECT count(*)::int FROM pg_prepared_statements WHERE name = 'by id'"), 1);
}

async function transaction() {
  const sql = "INSERT INTO client_rows VALUES ($1, $2, 'transaction')";
  await one.query("BEGIN");
  await one.query(sql, [CLIENT, -1]);
  await one.query("COMMIT");
  await one.query("BEGIN");
  await one.query(sql, [CLIENT, -2]);
  await one.query("ROLLBACK");
  const { rows } = await one.query("SELECT id FROM client_rows WHERE client = $1 AND note = 'transaction'", [CLIENT]);
  expect(rows.map((row) => row.id), [-1]);
}

async function copy() {
  const lines = Array.from({ length: COPIED }, (_, id) => `${CLIENT}\t${id}\tcopied\n`);
  await pipeline(Readable.from(lines), one.query(from("COPY client_rows FROM STDIN")));
  const sql = `SELECT id FROM client_rows WHERE client = '${CLIENT}' AND note = 'copied' ORDER BY id`;
  let out = "";
  for await (const chunk of one.query(to(`COPY (${sql}) TO STDOUT`))) {
    out += chunk;
  }
  expect(out, Array.from({ length: COPIED }, (_, id) => `${id}\n`).join(""));
}

async function notify() {
  const other = await connect();
  const told = new Promise((resolve) => one.once("notification", resolve));
  await one.query("LISTEN node_postgres");
  await other.query("NOTIFY node_postgres, 'hello'");
  const { channel, payload, processId } = await told;
  expect([channel, payload, processId], ["node_postgres", "hello", await value(other, "SELECT pg_backend_pid()")]);
  await other.end();
}

async function cancel() {
  const sleeper = await connect();
  let end;
  const ended = new Promise((resolve) => (end = resolve));
  const sleep = new pg.Query(SLEEP, [], (error) => end(error));
  sleeper.query(sleep);
  while ((await value(one, IS_SLEEPING)) !== 1) {
    await pause(20);
  }
  new pg.Client({ connectionString: URL }).cancel(sleeper, sleep);
  expect((await ended).code, "57014");
  expect(await value(sleeper, "SELECT 1"), 1);
  await sleeper.end();
}

async function error() {
  expect((await failure(one.query("INSERT INTO t VALUES (1)"))).code, "23505");
  expect((await failure(one.query("SELECT 1 FROM missing"))).code, "42P01");
  expect(await value(one, "SELECT 1"), 1);
}

async function big() {
  const { rows } = await one.query("SELECT generate_series(1, $1::int) AS id", [BIG_ROWS]);
  expect([rows.length, rows.at(-1).id], [BIG_ROWS, BIG_ROWS]);
  expect((await value(one, `SELECT repeat('x', ${BIG_VALUE})`)).length, BIG_VALUE);
}

async function ended() {
  const taken = await pool.connect();
  // The same for a connection that is taken.
  taken.on("error", () => {});
  const { code } = await failure(taken.query("SELECT pg_terminate_backend(pg_backend_pid())"));
  taken.release(true);
  expect(code, "57P01");
  expect(await value(pool, "SELECT 1"), 1);
}

await run(
  { query, prepared, transaction, copy, notify, cancel, error, big, ended },
  {
    async with(during) {
      const client = await pool.connect();
      await during((sql) => value(client, sql));
      client.release();
    },
    async close() {
      await pool.end();
      await one.end();
    },
  },
);
