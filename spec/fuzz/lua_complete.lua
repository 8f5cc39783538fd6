local complete = require "symphony.repl.complete"
local docs = require "symphony.repl.docs"
local history = require "symphony.repl.history"
local secret = require "symphony.repl.secret"

local function boom() error("evaluated") end

local trap = setmetatable({ own = 1 }, { __index = boom, __call = boom, __len = boom, __pairs = boom })
local env = setmetatable({ kv = { get = print, ls = print }, a = { { b = trap } }, trap = trap, text = "x" },
  { __index = _G })
env.env = env

local function list(prefix, after)
  local page = {}
  for _, key in ipairs { "/kv/a", "/kv/a/b", "/kv/a/c/d", "/kv/\xff", "/node/n" } do
    if key:sub(1, #prefix) == prefix and (not after or key > after) then page[#page + 1] = key end
  end
  return page
end

return {
  check = function(text)
    local found = complete.complete(env, text, list)
    assert(#found.items <= complete.ITEMS and found.from >= 1 and found.from <= #text + 1)
    local typed = text:sub(found.from)
    for i, item in ipairs(found.items) do
      assert(item:sub(1, #typed) == typed, "not what was begun")
      assert(utf8.len(item) and (i == 1 or found.items[i - 1] < item))
    end
    assert(not secret.is_in(secret.redact(text)), "a secret is left")
    for _, line in ipairs(history.lines(text)) do assert(not line:find("\n") and not secret.is_in(line)) end
    for _, entry in ipairs(docs.parse(text)) do
      assert(entry.name ~= "" and (entry.title or entry.signature))
      docs.examples(entry)
    end
  end,
  seeds = { "kv.get('a", "x = a[1].b.", "trap.own.", "text:up", "kv.ls(\"a/", "-- kv.\nenv.env.kv:", "a['b']['c",
    "require('", "SYMTKN-1-abc-def", "-----BEGIN EC PRIVATE KEY-----\nMHc",
    "--- kv.get(key) -> entry\n--- Text.\n---   1 --> 1\n\n",
    "--- # kv: keys\nlocal x" },
  words = { ".", ":", "..", "[", "]", "['", "']", '"', "\\", "kv", "env", "trap", "(", ")", "--", "\n", "SYMTKN-",
    "---", " ", "-->", "\xff" },
}
