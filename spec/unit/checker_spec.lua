-- The checker of spec/fault: valid histories pass, planted violations are caught.
local checker = require "spec.fault.checker"

local function call(kind, from, to, fields)
  local c = { key = "k", kind = kind, from = from, to = to }
  for k, v in pairs(fields or {}) do c[k] = v end
  return c
end
local function put(from, to, value) return call("put", from, to, { value = value }) end
local function get(from, to, value) return call("get", from, to, { value = value }) end
local function delete(from, to) return call("delete", from, to) end
local function cas(from, to, expected, value, ok)
  return call("cas", from, to, { expected = expected, value = value, ok = ok })
end

describe("the checker passes", function()
  local valid = {
    ["nothing"] = {},
    ["one after the other"] = { get(1, 2), put(3, 4, "a"), get(5, 6, "a"), delete(7, 8), get(9, 10) },
    ["a read during a write, old or new"] = { put(1, 2, "a"), put(3, 9, "b"), get(4, 5, "a"), get(6, 7, "b") },
    ["writes at once in either order"] = { put(1, 9, "a"), put(1, 9, "b"), get(10, 11, "a"), get(12, 13, "a") },
    ["a call that ends as another begins"] = { put(1, 2, "a"), put(2, 3, "b"), get(2, 2, "a"), get(2, 3, "b") },
    ["a write of unknown outcome that came through late"] = { put(1, 2, "a"), put(3, nil, "b"), get(4, 5, "a"),
      get(6, 7, "b"), get(8, 9, "b") },
    ["a write of unknown outcome that never did"] = { put(1, 2, "a"), put(3, nil, "b"), get(4, 5, "a"),
      get(100, 101, "a") },
    ["a read without an answer"] = { put(1, 2, "a"), get(3, nil), get(4, 5, "a") },
    ["compare and set"] = { cas(1, 2, nil, "a", true), cas(3, 4, "a", "b", true), cas(5, 6, "a", "c", false),
      get(7, 8, "b") },
    ["two at once, one wins"] = { put(1, 2, "a"), cas(3, 6, "a", "b", true),
      cas(3, 6, "a", "c", false), get(7, 8, "b") },
    ["compare and set of unknown outcome, either way"] = { put(1, 2, "a"), cas(3, nil, "a", "b"), get(4, 5, "b"),
      put(6, 7, "c"), cas(8, nil, "a", "d"), get(9, 10, "c") },
  }
  for name, history in pairs(valid) do
    it(name, function()
      local ok, why = checker.check(history)
      assert.is_true(ok, why)
    end)
  end

  it("many random histories of a true register, with calls that were cut off", function()
    for seed = 1, 60 do
      math.randomseed(seed)
      local history, state, now = {}, nil, 0
      for i = 1, 400 do
        -- The effect is at one moment, somewhere between begin and end; up to eight calls overlap.
        now = now + 1
        local from, to = now - math.random(8) + math.random(), now + math.random(8) - math.random()
        local roll = math.random(10)
        if roll <= 4 then
          history[i] = get(from, to, state)
        elseif roll <= 7 then
          state = "v" .. i
          history[i] = put(from, to, state)
        elseif roll == 8 then
          state = nil
          history[i] = delete(from, to)
        elseif roll == 9 then
          local ok = math.random(2) == 1
          local expected = "none"
          if ok then expected = state end
          history[i] = cas(from, to, expected, "c" .. i, ok)
          if ok then state = "c" .. i end
        else
          local applied = math.random(2) == 1
          history[i] = put(from, nil, "u" .. i)
          if applied then state = "u" .. i end
        end
      end
      local ok, why = checker.check(history)
      assert.is_true(ok, ("seed %d: %s"):format(seed, why))
    end
  end)

  it("thousands of calls over many keys, fast", function()
    local history = {}
    for i = 1, 20000 do
      history[i] = put(i, i + 6, "v" .. i)
      history[i].key = "k" .. i % 50
    end
    local began = os.clock()
    assert.is_true((checker.check(history)))
    assert.is_true(os.clock() - began < 20)
  end)
end)

describe("the checker catches", function()
  local planted = {
    ["a stale read"] = { put(1, 2, "a"), put(3, 4, "b"), get(5, 6, "a") },
    ["a read that goes back"] = { put(1, 2, "a"), put(3, 9, "b"), get(4, 5, "b"), get(6, 7, "a") },
    ["a lost update"] = { put(1, 2, "a"), get(3, 4) },
    ["a lost update between two others"] = { put(1, 2, "a"), put(3, 4, "b"), cas(5, 6, "a", "c", true) },
    ["a write applied twice"] = { put(1, nil, "a"), get(2, 3, "a"), put(4, 5, "b"), get(6, 7, "b"), get(8, 9, "a") },
    ["an acknowledged write applied again"] = { put(1, 2, "a"), put(3, 4, "b"), get(5, 6, "b"), get(7, 8, "a") },
    ["a delete undone"] = { put(1, 2, "a"), delete(3, 4), get(5, 6, "a") },
    ["a value that nobody wrote"] = { put(1, 2, "a"), get(3, 4, "x") },
    ["a value before it was written"] = { get(1, 2, "a"), put(3, 4, "a") },
    ["a refused write that took effect"] = { put(1, 2, "a"), cas(3, 4, "x", "b", false), get(5, 6, "b") },
    ["a refusal without a reason"] = { put(1, 2, "a"), cas(3, 4, "a", "b", false) },
    ["two winners"] = { put(1, 2, "a"), cas(3, 6, "a", "b", true), cas(3, 6, "a", "c", true) },
    ["an unknown write that took effect before it was sent"] = { get(1, 2, "a"), put(3, nil, "a") },
  }
  for name, history in pairs(planted) do
    it(name, function()
      local ok, why = checker.check(history)
      assert.is_false(ok)
      assert.truthy(why:find("key k is not linearizable", 1, true), why)
    end)
  end

  it("one stale read among thousands of calls", function()
    math.randomseed(7)
    for round = 1, 20 do
      local history, state = {}, nil
      for i = 1, 600 do
        if i % 3 == 0 then
          history[i] = get(i, i + 0.9, state)
        else
          state = "v" .. i
          history[i] = put(i, i + 0.9, state)
        end
      end
      assert.is_true((checker.check(history)))
      local at = 3 * math.random(20, 190)
      history[at].value = history[at - 4].value
      assert.is_false((checker.check(history)), "round " .. round)
    end
  end)
end)
