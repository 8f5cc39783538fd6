local errors = require "symphony.errors"
local json = require "symphony.json"
local stream = require "symphony.lines"
local remote = require "symphony.cluster.remote"

-- The error in an answer is one that can be shown and passed on, whatever the other side put into it.
local function check_answer(text)
  local doc = json.decode(text)
  for _, status in ipairs { 200, 403, 503 } do
    local err = remote.answer_error(status, doc, "10.0.0.1:27242")
    assert((err == nil) == (status == 200))
    if err then
      assert(errors.is(err) and #err.code <= 64)
      assert(err.hint == nil or type(err.hint) == "string")
      assert(utf8.len(json.encode(errors.body(err))))
      tostring(err)
    end
  end
end

local function lines(text, piece)
  local got = {}
  local take = stream.of(function(message) got[#got + 1] = json.encode(message) end)
  for at = 1, #text, piece do take(text:sub(at, at + piece - 1)) end
  return table.concat(got, "\n")
end

return {
  check = function(text)
    check_answer(text)
    -- A stream is cut anywhere.
    local whole = lines(text, math.max(#text, 1))
    assert(whole == lines(text, 7))
    if #text < 4096 then assert(whole == lines(text, 1)) end
    assert(not remote.encode_path(text):find("[^%w%-%._~/%%]"))
    assert(not remote.encode_segment(text):find("[^%w%-%._~%%]"))
  end,
  seeds = { '{"error":{"code":"denied","message":"no","hint":"ask"}}', '{"out":"a"}\n{"err64":"/w=="}\n\n{"exit":0}\n',
    '{"say":"waiting"}\n{"done":{"node_id":"x"}}\n' },
  words = { '{"error":', '"code":', '"message":', '"hint":', '{"out":"x"}\n', '{"exit":1}\n', "\n",
    "{", "}", "[]", "null", "\xff",
    "1" },
}
