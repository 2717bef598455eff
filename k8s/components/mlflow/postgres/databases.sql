-- Run once, when PostgreSQL's volume is empty: a database and a user for MLflow, and one of each for the ledger.
\set ON_ERROR_STOP on
\set mlflow `cat /run/secrets/mlflow`
\set ledger `cat /run/secrets/ledger`
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE ROLE ledger LOGIN PASSWORD :'ledger';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE ledger OWNER ledger;
REVOKE CONNECT ON DATABASE mlflow, ledger FROM PUBLIC;
