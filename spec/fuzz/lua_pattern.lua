local sys = require "sym.sys"
local uv = require "luv"

-- Of what Lua's own may take for ever with, little.
local function is_modest(pattern, subject)
  return #pattern <= 32 and #subject <= 64 and select(2, pattern:gsub("[*+%-]", "")) <= 4
    and select(2, pattern:gsub("%?", "")) <= 8
end

local function replaced(capture) return capture ~= "a" and capture end

local function all(pattern, subject, by)
  local out = {}
  local function add(...)
    local results = table.pack(pcall(...))
    for i = 1, results.n do results[i] = tostring(results[i]) end
    out[#out + 1] = table.concat(results, "\1")
  end
  for _, init in ipairs { 1, 2, -1, 0, 70, -70 } do
    add(string.find, subject, pattern, init)
    add(string.find, subject, pattern, init, true)
    add(string.match, subject, pattern, init)
    add(function()
      local list = {}
      for a, b in subject:gmatch(pattern, init) do list[#list + 1] = tostring(a) .. "\2" .. tostring(b) end
      return table.concat(list, "\3")
    end)
  end
  for _, replacement in ipairs { by, replaced, { a = "b", b = false } } do
    add(string.gsub, subject, pattern, replacement)
    add(string.gsub, subject, pattern, replacement, 1)
  end
  return table.concat(out, "\n")
end

return {
  check = function(text)
    local pattern, subject, by = text:match("^(.-)\n(.-)\n(.*)$")
    if not pattern or not is_modest(pattern, subject) or #by > 16 then return end
    local plain = all(pattern, subject, by)
    uv.update_time()
    local ok, guarded = sys.guarded(function(err) return err end, all, pattern, subject, by)
    if guarded:find("stopped: it kept the loop busy", 1, true) then return end
    assert(ok, guarded)
    assert(plain == guarded, ("%q: %q\n%s\n--- and guarded\n%s"):format(pattern, subject, plain, guarded))
  end,
  seeds = { "^%s*(.-)%s*$\n  a b \n<%1>", "()ll()\nhello\n%1%2", "%b()\nf(a(b)c)d\n", "%f[%w]%w+\nTHE fox\n%0%0",
    "(a*(.)%w(%s*))\naaa b\n%3", "[^%]a-c\\]+\nab]-\\x\n%%", "(a)%1\naa\n", "a?b-c+d*\nabbccdd\nx",
    "%z%x%X%p\n\0fZ.\n%9", "\0)\na\0)b\n%0" },
  words = { "%", "(", ")", "[", "]", "^", "$", "*", "+", "-", "?", ".", "%b", "%f", "%1", "()", "[^", "\n", "\0", "%w",
    "%S" },
}
