CREATE TABLE product (
    id BIGINT PRIMARY KEY,
    name TEXT NOT NULL,
    category TEXT NOT NULL,
    price BIGINT NOT NULL,
    stock BIGINT NOT NULL
);

CREATE TABLE orders (
    id TEXT PRIMARY KEY,
    product BIGINT NOT NULL REFERENCES product (id),
    amount BIGINT NOT NULL
);

-- How often a product was looked at. Writes of it come late, perhaps twice, and are taken only if none later came: by seq.
CREATE TABLE views (
    product BIGINT PRIMARY KEY,
    seen BIGINT NOT NULL,
    seq BIGINT NOT NULL
);
