// slonik on node-postgres, with its own pool.

import { createPool, sql } from "slonik";
import { BIG_ROWS, BIG_VALUE, CLIENT, POOL_SIZE, URL, expect, failure, run } from "./contract.mjs";

const pool = await createPool(URL, { maximumPoolSize: POOL_SIZE, idleTimeout: "DISABLE_TIMEOUT" });

const raw = (text) => ({ type: "SLONIK_TOKEN_QUERY", sql: text, values: [] });

async function query() {
  const row = await pool.one(
    sql.unsafe`SELECT ${41}::int + 1 AS number, ${"é€"}::text AS text, ${0.5}::float8 AS half, ${null}::text AS nothing`,
  );
  expect({ ...row }, { number: 42, text: "é€", half: 0.5, nothing: null });
}

async function transaction() {
  const insert = (connection, id) =>
    connection.query(sql.unsafe`INSERT INTO client_rows VALUES (${CLIENT}, ${id}, 'transaction')`);
  await pool.transaction((connection) => insert(connection, -1));
  const rolledBack = pool.transaction(async (connection) => {
    await insert(connection, -2);
    throw new Error("rolled back");
  });
  await failure(rolledBack);
  const mine = sql.unsafe`SELECT id FROM client_rows WHERE client = ${CLIENT} AND note = 'transaction'`;
  expect(await pool.manyFirst(mine), [-1]);
}

async function error() {
  const twice = await failure(pool.query(sql.unsafe`INSERT INTO t VALUES (1)`));
  expect([twice.constructor.name, sqlstate(twice)], ["UniqueIntegrityConstraintViolationError", "23505"]);
  expect(sqlstate(await failure(pool.query(sql.unsafe`SELECT 1 FROM missing`))), "42P01");
}

async function big() {
  const rows = await pool.manyFirst(sql.unsafe`SELECT generate_series(1, ${BIG_ROWS}::int)`);
  expect([rows.length, rows.at(-1)], [BIG_ROWS, BIG_ROWS]);
  expect((await pool.oneFirst(sql.unsafe`SELECT repeat('x', ${BIG_VALUE}::int)`)).length, BIG_VALUE);
}

async function ended() {
  const told = await failure(pool.query(sql.unsafe`SELECT pg_terminate_backend(pg_backend_pid())`));
  expect(told.constructor.name, "BackendTerminatedError");
  expect(await pool.oneFirst(sql.unsafe`SELECT 1`), 1);
}

// Of what its driver was told.
function sqlstate(error) {
  return error.code ?? sqlstate(error.cause);
}

await run(
  { query, transaction, error, big, ended },
  {
    with: (during) => pool.connect((connection) => during((text) => connection.oneFirst(raw(text)))),
    close: () => pool.end(),
  },
);
