require "spec.unit.fake"

local complete = require "symphony.repl.complete"
local secret = require "symphony.repl.secret"

local function called() error("evaluated") end

local env = setmetatable({
  kv = { get = print, put = print, ls = print, "first", limit = 5, ["not a name"] = 1, ["end"] = 2 },
  kvx = 1,
  deep = { { name = { inner = { x = 1, y = print } } }, ["a b"] = { z1 = 1, z2 = 2 } },
  trap = setmetatable({ own = 1 }, { __index = called, __pairs = called, __len = called, __call = called }),
  text = "some",
  node = print, state = { list = print },
}, { __index = setmetatable({ global = 1 }, { __index = { further = { 1 } } }) })
env.object = setmetatable({}, { __index = { method = print, field = 1, missing = false } })

local function items(text, list)
  local found = complete.complete(env, text, list)
  return table.concat(found.items, " "), found.from
end

describe("completion", function()
  it("knows globals, of the session and behind it, and words of Lua", function()
    assert.same({ "kv kvx", 1 }, { items("kv") })
    assert.same({ "global goto", 10 }, { items("return a(g") })
    assert.equal("further", items("fur"))
    assert.equal("while", items("whil"))
    assert.equal("", items("12"))
    assert.truthy(complete.complete(env, "").items[5])
  end)

  it("goes along names, indexes and tables behind", function()
    assert.same({ "get", 4 }, { items("kv.g") })
    assert.same({ "get limit ls put", 4 }, { items("kv.") })
    assert.equal("get ls put", items("x = kv:"))
    assert.equal("x y", items("deep[1].name.inner."))
    assert.equal("x y", items("deep [ 1 ] . name . inner . "))
    assert.equal("z1 z2", items("deep['a b'].z"))
    assert.equal("z1 z2", items('deep["a b"].z'))
    assert.equal("get", items("a..kv.g"))
    assert.equal("method", items("object:"))
    assert.equal("field method missing", items("object."))
    assert.truthy(items("text:"):find("gsub", 1, true))
    assert.truthy(items("('x'):up"):find("upper", 1, true))
    assert.equal("", items("nothing.at.all."))
    assert.equal("", items("kv.limit."))
  end)

  it("evaluates nothing", function()
    assert.equal("own", items("trap."))
    assert.equal("", items("trap.unknown."))
    assert.equal("", items("trap()."))
    assert.equal("", items("f(x)."))
    assert.equal("", items("kv.get('x')."))
    assert.equal("", items("deep[1 + 0]."))
  end)

  it("knows the keys of a table in quotes", function()
    assert.same({ "a b", 7 }, { items("deep['") })
    assert.equal("not a name", items('kv["not'))
  end)

  it("knows nothing inside of strings and comments", function()
    assert.equal("", items("x = 'kv."))
    assert.equal("", items("-- kv."))
    assert.equal("get", items("x = '--' kv.g"))
    assert.equal("get", items("x = 'it\\'s' kv.g"))
    assert.equal("get", items("-- what\nkv.g"))
  end)

  it("knows keys of the state, up to their next slash", function()
    local keys = { "/kv/app/a/1", "/kv/app/a/2", "/kv/app/b", "/kv/apple", "/kv/it's", "/kv/\xff", "/node/x1",
      "/name/w1" }
    table.sort(keys)
    local pages = 0
    local function list(prefix, after)
      local page = {}
      pages = pages + 1
      for _, key in ipairs(keys) do
        if key:sub(1, #prefix) == prefix and (not after or key > after) and #page < 2 then page[#page + 1] = key end
      end
      return page
    end
    assert.same({ "app/ apple", 9 }, { items('kv.get("', list) })
    assert.equal("app/a/ app/b", items('kv.put("app/', list))
    assert.equal("app/a/1 app/a/2", items('kv.ls "app/a/', list))
    assert.equal("app/a/", items('kv.get("app/a', list))
    assert.equal("/kv/ /name/ /node/", items("state.list('/", list))
    assert.equal("w1", items("node('", list))
    assert.equal("", items("print('", list))
    assert.equal("", items("kv.get('"))
    assert.is_true(pages < 60)
  end)

  it("gives so many and no more, from no more than it has the time for", function()
    local many = {}
    for i = 1, 700 do many["k" .. i] = i end
    local found = complete.complete({ many = many }, "many.")
    assert.same({ 500, true, 6 }, { #found.items, found.more, found.from })
    assert.same({ "b" }, complete.complete({ t = { [("a"):rep(2000)] = 1, b = 1 } }, "t.").items)
    local chain = { last = 1 }
    for i = 1, 30 do chain = setmetatable({ ["level" .. i] = 1 }, { __index = chain }) end
    assert.equal(20, #complete.complete({ chain = chain }, "chain.level").items)
    assert.same({}, complete.complete({ a = { a = 1 } }, ("a."):rep(100)).items)
    local loop = setmetatable({}, {})
    getmetatable(loop).__index = loop
    assert.same({}, complete.complete({ loop = loop }, "loop.x").items)
    assert.equal(#("x"):rep(9000) + 2, complete.complete(env, ("x"):rep(9000) .. " kv").from)
  end)

  it("takes any text", function()
    for _, text in ipairs { "", ".", ":", "..", "[", "'", '"', "kv..", "kv.:", "[1].", "a[", "a['", "end.", "\0",
      "\xff.", ("["):rep(1000) .. "].", ("a"):rep(5000) .. ".", "1.", "1a.", ")." } do
      assert.is_table(complete.complete(env, text).items, text)
    end
  end)
end)

describe("secrets", function()
  it("are found and taken out", function()
    local token = "SYMTKN-1-" .. ("a"):rep(50) .. "-" .. ("b"):rep(25)
    assert.is_true(secret.is_in("join('" .. token .. "')"))
    assert.is_true(secret.is_in("x = [[-----BEGIN EC PRIVATE KEY-----"))
    assert.is_false(secret.is_in("tokens SYMTKN and ----- lines"))
    assert.equal("join('(token)', 1)", secret.redact("join('" .. token .. "', 1)"))
    assert.equal("(token)", secret.redact(token:lower()))
    assert.equal("x = [[(PEM)", secret.redact("x = [[-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END"))
  end)
end)
