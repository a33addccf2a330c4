// postgres.js, which is its own pool.

import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import postgres from "postgres";
import {
  BIG_ROWS, BIG_VALUE, CLIENT, COPIED, IS_SLEEPING, POOL_SIZE, SLEEP, URL, expect, failure, pause, run,
} from "./contract.mjs";

let closed = 0;
const sql = postgres(URL, { max: POOL_SIZE, onnotice: () => {}, onclose: () => (closed += 1) });

const value = async (connection, text) => Object.values((await connection.unsafe(text))[0])[0];

async function query() {
  const [row] =
    await sql`SELECT ${41}::int + 1 AS number, ${"é€"}::text AS text, ${0.5}::float8 AS half, ${null}::text AS nothing`;
  expect({ ...row }, { number: 42, text: "é€", half: 0.5, nothing: null });
}

async function prepared() {
  const one = await sql.reserve();
  for (let id = 1; id <= 8; id += 1) {
    const [row] = await one`SELECT id FROM t WHERE id = ${id}`;
    expect(row.id, id);
  }
  const count = "SELECT count(*)::int FROM pg_prepared_statements WHERE starts_with(statement, 'SELECT id FROM t')";
  expect(await value(one, count), 1);
  one.release();
}

async function transaction() {
  await sql.begin((sql) => sql`INSERT INTO client_rows VALUES (${CLIENT}, -1, 'transaction')`);
  const rolledBack = sql.begin(async (sql) => {
    await sql`INSERT INTO client_rows VALUES (${CLIENT}, -2, 'transaction')`;
    throw new Error("rolled back");
  });
  expect((await failure(rolledBack)).message, "rolled back");
  const rows = await sql`SELECT id FROM client_rows WHERE client = ${CLIENT} AND note = 'transaction'`;
  expect(rows.map((row) => row.id), [-1]);
}

async function copy() {
  const lines = Array.from({ length: COPIED }, (_, id) => `${CLIENT}\t${id}\tcopied\n`);
  await pipeline(Readable.from(lines), await sql`COPY client_rows FROM STDIN`.writable());
  const rows = `SELECT id FROM client_rows WHERE client = '${CLIENT}' AND note = 'copied' ORDER BY id`;
  // Behind this its connection may stand still, as it does without pglease: it is given up.
  const other = postgres(URL, { max: 1 });
  let out = "";
  for await (const chunk of await other.unsafe(`COPY (${rows}) TO STDOUT`).readable()) {
    out += chunk;
  }
  await other.end({ timeout: 0 });
  expect(out, Array.from({ length: COPIED }, (_, id) => `${id}\n`).join(""));
}

async function notify() {
  let tell;
  const told = new Promise((resolve) => (tell = resolve));
  const { unlisten } = await sql.listen("postgres_js", tell);
  await sql.notify("postgres_js", "hello");
  expect(await told, "hello");
  await unlisten();
}

async function cancel() {
  const sleep = sql.unsafe(SLEEP).execute();
  const ended = failure(sleep);
  while ((await value(sql, IS_SLEEPING)) !== 1) {
    await pause(20);
  }
  sleep.cancel();
  expect((await ended).code, "57014");
  expect(await value(sql, "SELECT 1"), 1);
}

async function error() {
  const one = await sql.reserve();
  expect((await failure(one`INSERT INTO t VALUES (1)`)).code, "23505");
  expect((await failure(one`SELECT 1 FROM missing`)).code, "42P01");
  expect(await value(one, "SELECT 1"), 1);
  one.release();
}

async function big() {
  const rows = await sql`SELECT generate_series(1, ${BIG_ROWS}::int) AS id`;
  expect([rows.length, rows.at(-1).id], [BIG_ROWS, BIG_ROWS]);
  expect((await value(sql, `SELECT repeat('x', ${BIG_VALUE})`)).length, BIG_VALUE);
}

async function ended() {
  // What it was told comes up again at a later statement on that connection, as it does without pglease.
  const other = postgres(URL, { max: 1 });
  const { code } = await failure(other`SELECT pg_terminate_backend(pg_backend_pid())`);
  await other.end({ timeout: 0 });
  expect(["57P01", "CONNECTION_CLOSED"].includes(code), true);
  expect(await value(sql, "SELECT 1"), 1);
}

await run(
  { query, prepared, transaction, copy, notify, cancel, error, big, ended },
  {
    async with(during) {
      const one = await sql.reserve();
      await during((text) => value(one, text));
      one.release();
    },
    // A connection that it reserves before it has seen its end stands still, as it does without pglease.
    async ended() {
      while (closed < POOL_SIZE) {
        await pause(20);
      }
    },
    close: () => sql.end(),
  },
);
