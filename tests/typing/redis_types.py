"""Arguments of `RedisNews` that type checkers must accept or reject."""

from typing import assert_type

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.client import Pipeline as RedisPipeline
from redis.client import PubSub

from resilience import FallbackGroup
from resilience.redis import Client, Pipeline, RedisNews, Subscription


def takes_a_client(client: Redis, group: FallbackGroup[str]) -> None:
    """A client of redis-py, and the breakers of a group."""
    news = RedisNews(client, "chat", group.breakers, max_seconds=60, operators=True)
    with news as same:
        assert_type(same, RedisNews)
    as_client: Client = client
    del as_client


def takes_its_parts(subscription: PubSub, pipeline: RedisPipeline) -> None:
    """The objects that the client returns have the methods that are used."""
    as_subscription: Subscription = subscription
    as_pipeline: Pipeline = pipeline
    del as_subscription, as_pipeline


def refuses(client: Redis, async_client: AsyncRedis, group: FallbackGroup[str]) -> None:
    """A client for asyncio, a list of breakers, positional options."""
    RedisNews(async_client, "chat", group.breakers)  # type: ignore[arg-type]
    RedisNews(client, "chat", list(group.breakers))  # type: ignore[arg-type]
    RedisNews(client, "chat", group.breakers, 60)  # type: ignore[call-arg]
