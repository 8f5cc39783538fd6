-- The pure parts of services: schemas, placement, rollouts, and the two together over many steps.
package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
require "spec.unit.fake"
local json = require "symphony.json"
local placement = require "symphony.services.placement"
local registry = require "symphony.services.registry"
local rollout = require "symphony.services.rollout"
local schema = require "symphony.services.schema"

describe("a schema", function()
  local fields = {
    name = { type = "string", required = true, pattern = "^%l+$", max = 8 },
    size = { type = "integer", min = 1, max = 10, default = 3 },
    rate = { type = "number", max = 1 },
    on = { type = "boolean" },
    words = { type = "array", of = { type = "string", min = 1 }, min = 1, max = 2 },
    env = { type = "map", of = { type = "string" }, keys = "^[A-Z]+$", max = 2 },
    disk = { type = "object", fields = { path = { type = "string", required = true }, gib = { type = "integer" } } },
    mode = { type = "string", one_of = { "a", "b" } },
    even = { type = "integer", check = function(v) return v % 2 == 0, "it is odd" end },
  }
  schema.check_schema(fields, "test")

  it("gives a copy with the defaults", function()
    local given = { name = "x", words = { "a" }, env = { A = "1" }, disk = { path = "/" }, rate = 0.5, on = false }
    local out = assert(schema.check(fields, given))
    assert.same({ name = "x", size = 3, words = { "a" }, env = { A = "1" }, disk = { path = "/" }, rate = 0.5,
      on = false }, out)
    out.words[1], out.env.A = "b", "2"
    assert.same({ "a", "1" }, { given.words[1], given.env.A })
    assert.equal("[]", json.encode(schema.check({ l = { type = "array", of = { type = "string" } } }, { l = {} }).l))
    assert.same({ name = "x", size = 3 }, schema.check(fields, { name = "x", size = json.null }))
  end)

  it("says what is wrong, and where", function()
    for text, why in pairs {
      ['{}'] = "name is missing", ['[1]'] = "the spec is an object", ['{"name": null}'] = "name is missing",
      ['{"name": 1}'] = "name is a string", ['{"name": "X"}'] = "name is not what it should be",
      ['{"name": "abcdefghi"}'] = "name: at most 8 bytes", ['{"name": "x", "size": 0}'] = "size: at least 1",
      ['{"name": "x", "size": 1.5}'] = "size is a whole number", ['{"name": "x", "size": "1"}'] = "whole number",
      ['{"name": "x", "rate": 2}'] = "rate: at most 1", ['{"name": "x", "on": 1}'] = "on is true or false",
      ['{"name": "x", "words": []}'] = "words: at least 1", ['{"name": "x", "words": {"a": 1}}'] = "words is an array",
      ['{"name": "x", "words": ["a", "b", "c"]}'] = "words: at most 2",
      ['{"name": "x", "words": [""]}'] = "words%[1%]",
      ['{"name": "x", "words": [null]}'] = "words%[1%] is missing",
      ['{"name": "x", "env": ["a"]}'] = "env is an object",
      ['{"name": "x", "env": {"a": "b"}}'] = 'env: "a" is no key', ['{"name": "x", "env": {"A": 1}}'] = "env.A is a",
      ['{"name": "x", "env": {"A": "", "B": "", "C": ""}}'] = "env: at most 2", ['{"name": "x", "disk": {}}'] =
      "disk.path is missing", ['{"name": "x", "disk": {"path": "", "x": 1}}'] = 'no field "disk.x"',
      ['{"name": "x", "mode": "c"}'] = "mode is one of a, b", ['{"name": "x", "even": 3}'] = "even: it is odd",
      ['{"name": "x", "nane": 3}'] = 'no field "nane"', ['{"name": "x\\u0000"}'] = "name is text",
    } do
      local out, err = schema.check(fields, json.decode(text))
      assert.is_nil(out, text)
      assert.equal("invalid", err.code)
      assert.truthy(err.message:find(why), err.message .. " of " .. text)
    end
  end)

  it("is refused when it is none", function()
    for _, bad in ipairs { 1, { a = 1 }, { a = {} }, { a = { type = "list" } }, { a = { type = "array" } },
      { A = { type = "string" } }, { a = { type = "map", of = {} } }, { a = { type = "object" } } } do
      assert.is_false((pcall(schema.check_schema, bad, "x")))
    end
  end)

  it("is patched field by field", function()
    assert.same({ a = 1, c = 4 }, schema.patch({ a = 1, b = 2, c = 3 }, { b = json.null, c = 4 }))
  end)
end)

describe("a service", function()
  local function service(more)
    local s = { kind = "jar", resources = { jar = { schema = {} } }, reconcile = print, actual = print }
    for k, v in pairs(more or {}) do s[k] = v ~= json.null and v or nil end
    return s
  end

  it("is taken when it is whole", function()
    assert.is_true(registry.check(service()))
    assert.is_true(registry.check(service { reconcile = json.null, actual = json.null, resources = {
      jar = { reconcile = print, actual = print }, note = { placed = false } } }))
    for why, more in pairs {
      ["kind is"] = { kind = "Jar" }, ["no resources"] = { resources = {} },
      ["no name"] = { resources = { ["a/b"] = {} } },
      ["no reconcile"] = { reconcile = json.null }, ["reconcile is no function"] = { reconcile = 1 },
      ["no rollout \"some\""] = { rollout = "some" }, ["no move"] = { move = 7 }, ["placed is"] = { placed = 1 },
      ["cannot be called \"node\""] = { resources = { node = {} } }, ["calls are"] = { calls = { x = 1 } },
      ["a field has a type"] = { resources = { jar = { schema = { a = {} } } } },
    } do
      local ok, err = registry.check(service(more))
      assert.is_nil(ok, why)
      assert.truthy(err:find(why, 1, true), err)
    end
  end)

  it("is found by its resources, and clashes with others of the same", function()
    local one, two = service(), service { kind = "shelf", resources = { board = {} } }
    registry.set_own { { module = one, file = "one.lua" }, { module = two, file = "two.lua" } }
    assert.equal(one, registry.of "jar")
    assert.equal(two, (registry.of "board"))
    assert.is_nil(registry.of "tin")
    assert.equal(print, registry.field("board", "reconcile"))
    assert.is_nil(registry.field("tin", "reconcile"))
    local rows = registry.list()
    assert.truthy(registry.clash(rows, service { kind = "other" }):find("one.lua", 1, true))
    assert.truthy(registry.clash(rows, service { resources = { x = {} } }):find("a service already", 1, true))
    assert.is_nil(registry.clash(rows, service { kind = "other", resources = { x = {} } }))
    registry.set_own {}
  end)
end)

local function node(id, more)
  local n = { node_id = id, name = id, role = "worker", labels = {}, services = { "block", "jar" }, status = "ready",
    availability = "active", load = 0, since = 0 }
  for k, v in pairs(more or {}) do n[k] = v end
  return n
end

local function by_id(...)
  local out = {}
  for _, n in ipairs { ... } do out[n.node_id] = n end
  return out
end

local function doc(more)
  local d = { kind = "jar", service = "jar", id = "x", replicas = 2, constraints = {}, nodes = {}, generation = 1 }
  for k, v in pairs(more or {}) do d[k] = v end
  return d
end

local function plan(d, nodes, states, now, suspended)
  return placement.plan(d, nodes, states or {}, now or 1000, function(list) return placement.order(list) end, suspended)
end

describe("placement", function()
  it("chooses among ready workers that have the service and the labels, those with least to do", function()
    local nodes = by_id(node("a", { load = 5 }), node("b", { load = 1 }), node("c", { load = 1, labels = { z = "1" } }),
      node("d", { status = "down" }), node("e", { availability = "pause" }), node("f", { services = { "block" } }),
      node("g", { role = "manager" }), node("h", { status = false }), node("i", { removing = true }),
      node("j", { availability = "drain" }))
    assert.same({ "b", "c" }, plan(doc(), nodes).add)
    assert.same({ "b", "c", "a" }, plan(doc { replicas = 9 }, nodes).add)
    local p = plan(doc { constraints = { z = "1" } }, nodes)
    assert.same({ { "c" }, 1 }, { p.add, p.missing })
    assert.truthy(p.why:find("1 is down", 1, true) or p.why:find("is not z=1", 1, true), p.why)
    p = plan(doc { nodes = { "a" } }, nodes)
    assert.same({ { "b" }, 0 }, { p.add, p.missing })
    assert.truthy(plan(doc(), {}).why:find("there are no other workers", 1, true))
    local listed = {}
    for i, n in ipairs(placement.order({ node("a"), node("b"), node("c", { load = 3 }) }, { "c", "none", "b" })) do
      listed[i] = n.node_id
    end
    assert.same({ "c", "b", "a" }, listed)
  end)

  it("lets be what is well, on pause too", function()
    local nodes = by_id(node("a", { availability = "pause" }), node("b"), node("c"))
    assert.same({ add = {}, drop = {}, missing = 0 }, plan(doc { nodes = { "a", "b" } }, nodes))
  end)

  it("takes away what is too much: what does not run first, then where most is to do", function()
    local nodes = by_id(node("a"), node("b", { load = 9 }), node("c"), node("d", { load = 5 }))
    local d = doc { replicas = 2, nodes = { "a", "b", "c", "d" } }
    assert.same({ "d", "b" }, plan(d, nodes, { a = "running", b = "running", c = "running", d = "running" }).drop)
    assert.same({ "b", "a" }, plan(d, nodes, { b = "running", c = "running", d = "running" }).drop)
    assert.equal(4, #plan(doc { replicas = 0, nodes = d.nodes }, nodes).drop)
  end)

  it("waits for a node that is down, for as long as it is told", function()
    local nodes = by_id(node("a", { status = "down", since = 900 }), node("b"), node("c"))
    local d = doc { nodes = { "a", "b" }, move_after = 200 }
    assert.same({ add = {}, drop = {}, missing = 0, again = 100 }, plan(d, nodes))
    local p = plan(d, nodes, nil, 1100)
    assert.same({ { "c" }, { "a" } }, { p.add, p.drop })
    -- Nowhere to go: it may come back.
    p = plan(d, by_id(nodes.a, nodes.b), nil, 1100)
    assert.same({ {}, {}, 1 }, { p.add, p.drop, p.missing })
    -- Too many are down at once: it is not them.
    p = plan(d, nodes, nil, 1100, true)
    assert.same({ {}, {}, 0 }, { p.add, p.drop, p.missing })
    -- Removed is removed.
    p = plan(d, by_id(nodes.b, nodes.c), nil, 950)
    assert.same({ { "c" }, { "a" } }, { p.add, p.drop })
    p = plan(d, by_id(nodes.b), nil, 950)
    assert.same({ {}, { "a" }, 1 }, { p.add, p.drop, p.missing })
  end)

  it("leaves a drained node, before or after it has begun elsewhere", function()
    local nodes = by_id(node("a", { availability = "drain" }), node("b"), node("c"))
    local p = plan(doc { nodes = { "a", "b" } }, nodes, { a = "running", b = "running" })
    assert.same({ { "c" }, { "a" } }, { p.add, p.drop })
    local d = doc { nodes = { "a", "b" }, move = "start-first" }
    p = plan(d, nodes, { a = "running", b = "running" })
    assert.same({ { "c" }, {} }, { p.add, p.drop })
    d.nodes = { "a", "b", "c" }
    assert.same({ {}, {} }, { plan(d, nodes, { b = "running", c = "starting" }).add,
      plan(d, nodes, { b = "running", c = "starting" }).drop })
    assert.same({ "a" }, plan(d, nodes, { b = "running", c = "running" }).drop)
    -- Nowhere to go, or the labels are gone, or the service.
    p = plan(doc { nodes = { "a", "b" } }, by_id(nodes.a, nodes.b), {})
    assert.same({ {}, {}, 1 }, { p.add, p.drop, p.missing })
    p = plan(doc { nodes = { "b", "c" }, constraints = { z = "1" } },
      by_id(node("b"), node("c", { services = {}, labels = { z = "1" } }), node("d", { labels = { z = "1" } })), {})
    assert.same({ { "d" }, 1 }, { p.add, #p.drop })
  end)

  it("is held back while more than a third of the workers are down", function()
    local nodes = {}
    for i = 1, 9 do nodes[i] = node("n" .. i, { status = i <= 3 and "down" or "ready" }) end
    nodes[10] = node("m", { role = "manager", status = "down" })
    assert.is_false(placement.is_suspended(nodes))
    nodes[4].status = "down"
    assert.is_true(placement.is_suspended(nodes))
    assert.is_false(placement.is_suspended { node("a", { status = "down" }), node("b") })
  end)
end)

describe("a rollout", function()
  local function there() return nil end
  local function rolling(more)
    local d = doc { nodes = { "a", "b", "c" }, generation = 2, rollout = { state = "rolling" }, rollout_s = 10 }
    for k, v in pairs(more or {}) do d[k] = v end
    return d
  end
  local function given(a, b, c)
    return { a = { generation = a, since = 1000 }, b = { generation = b, since = 1000 },
      c = { generation = c, since = 1000 } }
  end
  local function said(a, b, c)
    local out = {}
    for id, text in pairs { a = a, b = b, c = c } do
      local state, generation = text:match("^(%S+) (%d)$")
      out[id] = { state = state, generation = math.tointeger(tonumber(generation)),
        message = state == "failed" and "why" }
    end
    return out
  end

  local function step(d, assigned, states, now, down_since)
    return rollout.next(d, assigned, states, down_since or there, now)
  end

  it("goes from one to the next, each once it runs on the one before", function()
    local d = rolling()
    local r1 = said("running 1", "running 1", "running 1")
    assert.same({ advance = { "a" } }, step(d, given(1, 1, 1), r1, 1000))
    assert.same({ wait = 10 }, step(d, given(2, 1, 1), r1, 1000))
    assert.same({ wait = 7 }, step(d, given(2, 1, 1), said("starting 2", "running 1", "running 1"), 1003))
    assert.same({ advance = { "b" } }, step(d, given(2, 1, 1), said("running 2", "running 1", "running 1"), 1003))
    -- What does not work goes first.
    assert.same({ advance = { "c" } }, step(d, given(2, 1, 1), said("running 2", "running 1", "failed 1"), 1003))
    local done = { done = true, down = {} }
    assert.same(done, step(d, given(2, 2, 2), said("running 2", "exited 2", "running 2"), 1003))
    assert.same(done, step(rolling { nodes = {} }, {}, {}, 1003)) -- nobody is to have it
    assert.is_nil(step(rolling { rollout = { state = "done" } }, given(2, 2, 1), {}, 1003))
    assert.is_nil(step(rolling { rollout = { state = "stopped" } }, given(2, 2, 1), {}, 1003))
  end)

  it("stops where it fails, or takes too long", function()
    local d = rolling()
    assert.same({ stop = "why", node = "a" }, step(d, given(2, 1, 1), said("failed 2", "running 1", "running 1"), 1000))
    -- That it had failed before is no news.
    assert.same({ wait = 10 }, step(d, given(2, 1, 1), said("failed 1", "running 1", "running 1"), 1000))
    local late = step(d, given(2, 1, 1), said("starting 2", "running 1", "running 1"), 1011)
    assert.same({ "a", "it is not running after 10 s (starting)" }, { late.node, late.stop })
    assert.truthy(step(d, given(2, 1, 1), {}, 1011).stop:find("nothing was heard", 1, true))
  end)

  it("waits for a node that is down as for one that is slow, and not for ever", function()
    local d = rolling()
    local function down(id, since)
      return function(which) return which == id and since or nil end
    end
    local old, mixed = said("running 1", "running 1", "running 1"), said("running 1", "running 2", "running 2")
    -- It was down long before, and has the new one when it is back: what it does then is no matter of this rollout.
    assert.same({ advance = { "b" } }, step(d, given(1, 1, 1), old, 1000, down("a", 900)))
    assert.same({ advance = { "a" } }, step(d, given(1, 2, 2), mixed, 1000, down("a", 900)))
    assert.same({ done = true, down = { "a" } }, step(d, given(2, 2, 2), mixed, 1000, down("a", 900)))
    assert.same({ advance = { "b" } }, step(d, given(1, 1, 1), old, 1000, down("a", 0)))
    -- It goes down meanwhile, with the new one or the old: that is one less that works, and no other is touched.
    for _, has in ipairs { 1, 2 } do
      assert.same({ wait = 7 }, step(d, given(has, 1, 1), old, 1003, down("a", 1000)))
      assert.same({ advance = { "b" } }, step(d, given(has, 1, 1), old, 1010, down("a", 1000)))
    end
    assert.same({ wait = 7 }, step(d, given(2, 1, 1), said("running 2", "running 1", "running 1"), 1003,
      down("a", 1000)))
    -- Also the last of them is waited for before it is called done.
    assert.same({ wait = 1 }, step(d, given(2, 2, 2), mixed, 1009, down("a", 1000)))
    -- Back, it has its time to begin.
    assert.same({ wait = 1 }, step(d, given(2, 1, 1), old, 1009))
    assert.equal("a", step(d, given(2, 1, 1), old, 1010).node)
  end)

  it("gives who comes new what is good", function()
    local d = rolling { spec = "new", stable = { spec = "old", generation = 1 } }
    assert.same({ "new", 2 }, { rollout.spec_of(d) })
    d.rollout.state = "stopped"
    assert.same({ "old", 1 }, { rollout.spec_of(d) })
    d.stable = nil
    assert.same({ "new", 2 }, { rollout.spec_of(d) })
  end)
end)

describe("placement and rollouts together", function()
  -- A cluster in small: every step of the leader is carried out, nodes do what they are told by and by, come and go.
  local function simulate(seed)
    math.randomseed(seed)
    local names = { "a", "b", "c", "d", "e", "f" }
    local nodes, runs = {}, {} -- runs: node -> generation that runs there
    for i, id in ipairs(names) do nodes[id] = node(id, { load = i }) end
    local d = doc { replicas = 3, generation = 1, move = math.random() < 0.5 and "start-first" or "stop-first",
      move_after = 5, rollout_s = 1000 }
    local assigned, now = {}, 1000

    local function states()
      local out, plain = {}, {}
      for id, g in pairs(runs) do
        out[id] = { state = "running", generation = g }
        plain[id] = nodes[id] and nodes[id].status == "ready" and "running" or nil
      end
      return out, plain
    end

    local function leader_step()
      local said, plain = states()
      local p = plan(d, nodes, plain, now)
      for _, id in ipairs(p.drop) do assigned[id] = nil end
      local list = {}
      for _, id in ipairs(d.nodes) do list[#list + 1] = assigned[id] and id or nil end
      local _, generation = rollout.spec_of(d)
      for _, id in ipairs(p.add) do
        list[#list + 1], assigned[id] = id, { generation = generation, since = now }
      end
      d.nodes = list
      if #p.add + #p.drop > 0 then return true end
      local function down_since(id)
        if nodes[id].status ~= "ready" then return nodes[id].since end
      end
      local step = rollout.next(d, assigned, said, down_since, now)
      if not step or step.wait then return false end
      if step.stop then error(step.stop) end
      -- What works is touched only while all others do.
      local one = step.advance and step.advance[1]
      if one and nodes[one].status == "ready" and runs[one] then
        for _, id in ipairs(d.nodes) do
          if id ~= one and (nodes[id].status ~= "ready" or not runs[id]) then error(id .. " does not run") end
        end
      end
      for _, id in ipairs(step.advance or {}) do assigned[id] = { generation = d.generation, since = now } end
      if step.done then d.rollout = { state = "done" } end
      return true
    end

    local function nodes_step()
      for _, id in ipairs(names) do
        local n = nodes[id]
        if n and n.status == "ready" and math.random() < 0.5 then
          runs[id] = assigned[id] and assigned[id].generation or nil
        end
      end
    end

    local down = 0
    for _ = 1, 300 do
      now = now + 1
      local id = names[math.random(#names)]
      local what = math.random(12)
      if what == 1 and down < 2 and nodes[id].status == "ready" then
        nodes[id].status, nodes[id].since, down = "down", now, down + 1
      elseif what == 2 and nodes[id].status == "down" then
        nodes[id].status, down = "ready", down - 1
      elseif what == 3 then
        nodes[id].availability = ({ "active", "active", "pause", "drain" })[math.random(4)]
      elseif what == 4 and math.random() < 0.2 then
        d.generation, d.rollout = d.generation + 1, { state = "rolling" }
      end
      for _ = 1, 20 do
        if not leader_step() then break end
      end
      local seen = {}
      for _, one in ipairs(d.nodes) do
        if seen[one] or not assigned[one] then error(one) end -- luassert takes long, and this is often
        seen[one] = true
      end
      if #d.nodes > 2 * d.replicas then error(#d.nodes) end
      nodes_step()
    end
    -- Left alone, it gets where it is to be.
    for _, n in pairs(nodes) do n.status, n.availability = "ready", "active" end
    for _ = 1, 200 do
      now = now + 1
      leader_step()
      nodes_step()
    end
    assert.equal(3, #d.nodes)
    for _, one in ipairs(d.nodes) do assert.equal(d.generation, runs[one]) end
    local count = 0
    for _ in pairs(runs) do count = count + 1 end
    assert.equal(3, count)
    assert.is_false(leader_step())
  end

  it("come to rest where they should, whatever has happened", function()
    for seed = 1, 60 do simulate(seed) end
  end)
end)
